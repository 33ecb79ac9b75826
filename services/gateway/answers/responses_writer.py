"""Writes answers as OpenAI's responses: `/v1/responses`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zipmoe.client import Event, Finished, FinishReason
from zipmoe.services.gateway.answers.answer_parts import (
    AnswerPart,
    PartBegun,
    PartChange,
    PartEnded,
    PartGrown,
    PartKind,
    PartsReader,
)
from zipmoe.services.gateway.answers.answer_writer import AnswerWriter, Texts
from zipmoe.services.gateway.http_problem import HttpProblem
from zipmoe.services.gateway.json_frames import frame

_PREFIXES = {PartKind.REASONING: "rs", PartKind.TEXT: "msg", PartKind.CALL: "fc"}
_TEXT_EVENTS = {PartKind.REASONING: "response.reasoning_text", PartKind.TEXT: "response.output_text"}
_ARGUMENTS = "response.function_call_arguments"


class ResponsesWriter(AnswerWriter):
    """Writes one response with items for reasoning, messages and calls of functions."""

    def __init__(self, request_id: str, model: str, settings: Mapping[str, Any]) -> None:
        """Prepares a response.

        Args:
            request_id: id of the request, also in the router's log.
            model: the model's name as the client gave it.
            settings: the request's settings that a response repeats, in OpenAI's JSON.
        """
        self._request_id = request_id
        self._model = model
        self._settings = settings
        self._created = int(time.time())
        self._parts = PartsReader()
        self._sent = 0

    def whole(self, answers: Sequence[Sequence[Event]], texts: Texts) -> dict[str, Any]:
        """Returns the response."""
        (events,) = answers
        return self._ended(self._parts.read_all(events))

    def frames(self, prompt: int, event: Event, texts: Texts) -> Iterator[bytes]:
        """Yields the events of a stream."""
        if not self._sent:
            yield self._frame("response.created", response=self._response("in_progress"))
            yield self._frame("response.in_progress", response=self._response("in_progress"))
        for change in self._parts.read(event):
            yield from self._change_frames(change)
        if isinstance(event, Finished):
            response = self._ended(event)
            yield self._frame(f"response.{response['status']}", response=response)

    def failure(self, problem: HttpProblem) -> bytes:
        """Returns the response with its error."""
        code = problem.code or "server_error"
        if problem.status >= 500:
            code = "server_error"
        elif problem.status == 429:
            code = "rate_limit_exceeded"
        response = self._response("failed", error={"code": code, "message": problem.message})
        return self._frame("response.failed", response=response)

    def _frame(self, kind: str, **fields: Any) -> bytes:
        number, self._sent = self._sent, self._sent + 1
        return frame({"type": kind, "sequence_number": number, **fields}, kind)

    def _change_frames(self, change: PartChange) -> Iterator[bytes]:
        part = change.part
        if isinstance(change, PartBegun):
            yield self._frame("response.output_item.added", output_index=part.index, item=self._open_item(part))
        place: dict[str, Any] = {"item_id": self._item_id(part), "output_index": part.index}
        if part.kind is PartKind.CALL:
            yield from self._call_frames(change, place)
        else:
            yield from self._text_frames(change, {**place, "content_index": 0})
        if isinstance(change, PartEnded):
            yield self._frame("response.output_item.done", output_index=part.index, item=self._item(part))

    def _call_frames(self, change: PartChange, place: dict[str, Any]) -> Iterator[bytes]:
        if isinstance(change, PartGrown):
            yield self._frame(f"{_ARGUMENTS}.delta", **place, delta=change.added)
        elif isinstance(change, PartEnded):
            yield self._frame(f"{_ARGUMENTS}.done", **place, name=change.part.name, arguments=change.part.text)

    def _text_frames(self, change: PartChange, place: dict[str, Any]) -> Iterator[bytes]:
        part = change.part
        kind = _TEXT_EVENTS[part.kind]
        logprobs: dict[str, Any] = {"logprobs": []} if part.kind is PartKind.TEXT else {}
        if isinstance(change, PartBegun):
            yield self._frame("response.content_part.added", **place, part=_content(part.kind, ""))
        elif isinstance(change, PartGrown):
            yield self._frame(f"{kind}.delta", **place, delta=change.added, **logprobs)
        else:
            yield self._frame(f"{kind}.done", **place, text=part.text, **logprobs)
            yield self._frame("response.content_part.done", **place, part=_content(part.kind, part.text))

    def _item_id(self, part: AnswerPart) -> str:
        return f"{_PREFIXES[part.kind]}_{self._request_id}_{part.index}"

    def _open_item(self, part: AnswerPart) -> dict[str, Any]:
        """Returns the item with which a part begins."""
        item: dict[str, Any] = {"id": self._item_id(part), "status": "in_progress"}
        if part.kind is PartKind.CALL:
            return {"type": "function_call", **item, "call_id": part.call_id, "name": part.name, "arguments": ""}
        if part.kind is PartKind.TEXT:
            return {"type": "message", **item, "role": "assistant", "content": []}
        return {"type": "reasoning", **item, "summary": [], "content": [], "encrypted_content": None}

    def _item(self, part: AnswerPart) -> dict[str, Any]:
        """Returns the item of a part that has ended."""
        item = {**self._open_item(part), "status": "incomplete" if part.is_cut else "completed"}
        if part.kind is PartKind.CALL:
            return {**item, "arguments": part.text}
        return {**item, "content": [_content(part.kind, part.text)]}

    def _response(self, status: str, **changes: Any) -> dict[str, Any]:
        """Returns the response as it is, with some of its fields changed."""
        return {
            "id": f"resp_{self._request_id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": [],
            "usage": None,
            **self._settings,
            **changes,
        }

    def _ended(self, finished: Finished) -> dict[str, Any]:
        is_cut = finished.reason is FinishReason.LENGTH
        return self._response(
            "incomplete" if is_cut else "completed",
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            output=[self._item(part) for part in self._parts.parts],
            usage=self._usage(finished),
            **({} if is_cut else {"completed_at": int(time.time())}),
        )

    def _usage(self, finished: Finished) -> dict[str, Any]:
        usage = finished.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.reused_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.generated_tokens,
            "output_tokens_details": {"reasoning_tokens": self._parts.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        }


def _content(kind: PartKind, text: str) -> dict[str, Any]:
    if kind is PartKind.REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
