"""Writes answers as Anthropic's messages: `/v1/messages`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from zipmoe.client import Event, Finished, FinishReason, PromptProgress, Started, Usage
from zipmoe.services.gateway.answers.answer_parts import (
    AnswerPart,
    PartBegun,
    PartChange,
    PartGrown,
    PartKind,
    PartsReader,
)
from zipmoe.services.gateway.answers.answer_writer import AnswerWriter, Texts
from zipmoe.services.gateway.http_problem import HttpProblem, anthropic_error
from zipmoe.services.gateway.json_frames import frame

_INVALID_JSON: Final = "INVALID_JSON"
"""Anthropic's name for arguments that are no JSON object, where an object has to stand."""


class MessagesWriter(AnswerWriter):
    """Writes one message with blocks of thinking, text and tool use."""

    keep_alive = frame({"type": "ping"}, "ping")

    def __init__(self, request_id: str, model: str, stop_sequences: Sequence[str]) -> None:
        """Prepares a message.

        Args:
            request_id: id of the request, also in the router's log.
            model: the model's name as the client gave it.
            stop_sequences: the stop strings that the client gave.
        """
        self._request_id = request_id
        self._model = model
        self._stop_sequences = stop_sequences
        self._parts = PartsReader()
        self._has_begun = False

    def whole(self, answers: Sequence[Sequence[Event]], texts: Texts) -> dict[str, Any]:
        """Returns the message."""
        (events,) = answers
        finished = self._parts.read_all(events)
        content = [_whole_block(part) for part in self._parts.parts]
        return self._message(content, self._end_of(finished), _usage(finished.usage))

    def frames(self, prompt: int, event: Event, texts: Texts) -> Iterator[bytes]:
        """Yields the events of a stream."""
        if not self._has_begun:
            self._has_begun = True
            prompt_tokens = event.prompt_tokens if isinstance(event, PromptProgress | Started) else 0
            begun = self._message([], {"stop_reason": None, "stop_sequence": None}, _counts(prompt_tokens, 0, 0))
            yield _frame("message_start", message=begun)
            yield self.keep_alive
        for change in self._parts.read(event):
            yield _change_frame(change)
        if isinstance(event, Finished):
            yield _frame("message_delta", delta=self._end_of(event), usage=_usage(event.usage))
            yield _frame("message_stop")

    def failure(self, problem: HttpProblem) -> bytes:
        """Returns the error."""
        return frame(anthropic_error(problem, self._request_id), "error")

    def _message(self, content: list[dict[str, Any]], end: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
        head = {"id": f"msg_{self._request_id}", "type": "message", "role": "assistant", "model": self._model}
        return {**head, "content": content, **end, "usage": usage}

    def _end_of(self, finished: Finished) -> dict[str, Any]:
        """Returns why the message has ended."""
        if finished.reason is FinishReason.LENGTH:
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if finished.stop_string and finished.stop_string in self._stop_sequences:
            return {"stop_reason": "stop_sequence", "stop_sequence": finished.stop_string}
        calls = any(part.kind is PartKind.CALL for part in self._parts.parts)
        return {"stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None}


def _frame(kind: str, **fields: Any) -> bytes:
    return frame({"type": kind, **fields}, kind)


def _change_frame(change: PartChange) -> bytes:
    index = change.part.index
    if isinstance(change, PartBegun):
        return _frame("content_block_start", index=index, content_block=_empty_block(change.part))
    if isinstance(change, PartGrown):
        return _frame("content_block_delta", index=index, delta=_delta(change))
    return _frame("content_block_stop", index=index)


def _empty_block(part: AnswerPart) -> dict[str, Any]:
    """Returns the block with which a part begins."""
    if part.kind is PartKind.REASONING:
        return {"type": "thinking", "thinking": "", "signature": ""}
    if part.kind is PartKind.TEXT:
        return {"type": "text", "text": "", "citations": None}
    return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": {}}


def _whole_block(part: AnswerPart) -> dict[str, Any]:
    """Returns the block of a part that has ended."""
    block = _empty_block(part)
    if part.kind is PartKind.CALL:
        return {**block, "input": _input(part.text)}
    return {**block, block["type"]: part.text}


def _delta(change: PartGrown) -> dict[str, Any]:
    if change.part.kind is PartKind.REASONING:
        return {"type": "thinking_delta", "thinking": change.added}
    if change.part.kind is PartKind.TEXT:
        return {"type": "text_delta", "text": change.added}
    return {"type": "input_json_delta", "partial_json": change.added}


def _input(arguments: str) -> dict[str, Any]:
    """Returns the arguments of a call as an object; those that are no JSON object under a name that says so."""
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {_INVALID_JSON: arguments}


def _usage(usage: Usage) -> dict[str, Any]:
    return _counts(usage.prompt_tokens - usage.reused_tokens, usage.reused_tokens, usage.generated_tokens)


def _counts(computed: int, reused: int, generated: int) -> dict[str, Any]:
    """Returns Anthropic's counts: tokens from the cache are not among `input_tokens`."""
    return {
        "input_tokens": computed,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": reused,
        "output_tokens": generated,
    }
