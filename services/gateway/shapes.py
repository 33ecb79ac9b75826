"""Answers in OpenAI's JSON: whole answers and stream pieces, for chats and for plain completions."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from zipmoe.client import CallDelta, Completion, Finished, FinishReason, Token, Usage

_IMPOSSIBLE: Final = -9999.0
"""OpenAI's number for the logarithm of zero: JSON has no infinity."""

Texts = Mapping[int, str]
"""Texts by token id, for the tokens in the log-probabilities."""


def _finite(logprob: float | None) -> float:
    return logprob if logprob is not None and math.isfinite(logprob) else _IMPOSSIBLE


def _usage(usage: Usage) -> dict[str, Any]:
    details = {"cached_tokens": usage.reused_tokens}
    if usage.approximate_tokens:
        details["approximate_tokens"] = usage.approximate_tokens
    predicted = {
        "accepted_prediction_tokens": usage.accepted_tokens,
        "rejected_prediction_tokens": usage.drafted_tokens - usage.accepted_tokens,
    }
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.generated_tokens,
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        "prompt_tokens_details": details,
        "completion_tokens_details": predicted,
    }


@dataclass
class AnswerShape(ABC):
    """The JSON form of one answer.

    Attributes:
        request_id: id of the request, also in the router's log.
        model: the model's name as the client gave it.
        fingerprint: id of the version and the weights.
        with_logprobs: whether the client asked for log-probabilities.
        created: time of the request, in seconds since 1970.
    """

    request_id: str
    model: str
    fingerprint: str
    with_logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))

    prefix = ""
    whole_object = ""
    piece_object = ""

    def whole(self, completion: Completion, texts: Texts) -> dict[str, Any]:
        """Returns a whole answer."""
        logprobs = self.logprobs(completion.tokens, texts) if self.with_logprobs else None
        choice = {
            "index": 0,
            **self.answer_fields(completion),
            "logprobs": logprobs,
            "finish_reason": self.end(completion.finish_reason),
        }
        return {**self._head(self.whole_object), "choices": [choice], "usage": _usage(completion.usage)}

    def piece(self, text: str, token: Token | None, texts: Texts, finish_reason: str | None = None) -> dict[str, Any]:
        """Returns a piece of a stream: some text with the token that completed it, or the end."""
        logprobs = self.logprobs([token], texts) if self.with_logprobs and token is not None else None
        choice = {"index": 0, **self.delta_fields(text), "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head(self.piece_object), "choices": [choice]}

    def usage_piece(self, usage: Usage) -> dict[str, Any]:
        """Returns the piece with the usage, the last of a stream if the client asked for it."""
        return {**self._head(self.piece_object), "choices": [], "usage": _usage(usage)}

    def opening(self) -> dict[str, Any] | None:
        """Returns the first piece of a stream, before any text; None if there is none."""
        return None

    def pieces_before(self, event: Token | Finished) -> list[dict[str, Any]]:
        """Returns the pieces of a stream that come before the text of an event: its reasoning."""
        return []

    def pieces_after(self, event: Token | Finished) -> list[dict[str, Any]]:
        """Returns the pieces of a stream that come after the text of an event: its tool calls."""
        return []

    def end(self, reason: FinishReason) -> str:
        """Returns the reason why the answer has ended."""
        return reason.value

    @abstractmethod
    def answer_fields(self, completion: Completion) -> dict[str, Any]:
        """Returns the fields of a choice that hold a whole answer."""

    @abstractmethod
    def delta_fields(self, text: str) -> dict[str, Any]:
        """Returns the fields of a choice that hold a piece of text."""

    @abstractmethod
    def logprobs(self, tokens: Sequence[Token], texts: Texts) -> dict[str, Any]:
        """Returns the log-probabilities of some tokens."""

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class ChatShape(AnswerShape):
    """The form of `/v1/chat/completions`."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    piece_object = "chat.completion.chunk"
    _calls_tools = False

    def opening(self) -> dict[str, Any]:
        """Returns the piece that names the assistant as the role."""
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return {**self._head(self.piece_object), "choices": [choice]}

    def answer_fields(self, completion: Completion) -> dict[str, Any]:
        """Returns a message."""
        self._calls_tools = bool(completion.tool_calls)
        content = None if completion.tool_calls and not completion.text else completion.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if completion.reasoning:
            message["reasoning_content"] = completion.reasoning
        if completion.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in completion.tool_calls
            ]
        return {"message": message}

    def pieces_before(self, event: Token | Finished) -> list[dict[str, Any]]:
        """Returns a piece with the reasoning of an event, if it has any."""
        return [self._delta({"reasoning_content": event.reasoning})] if event.reasoning else []

    def pieces_after(self, event: Token | Finished) -> list[dict[str, Any]]:
        """Returns a piece with the tool calls of an event, if it has any."""
        if not event.tool_calls:
            return []
        self._calls_tools = True
        return [self._delta({"tool_calls": [_call_delta(call) for call in event.tool_calls]})]

    def end(self, reason: FinishReason) -> str:
        """Returns `tool_calls` where an answer has called tools and is complete."""
        return "tool_calls" if self._calls_tools and reason is FinishReason.STOP else reason.value

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._head(self.piece_object), "choices": [choice]}

    def delta_fields(self, text: str) -> dict[str, Any]:
        """Returns a delta; the delta of the end is empty."""
        return {"delta": {"content": text} if text else {}}

    def logprobs(self, tokens: Sequence[Token], texts: Texts) -> dict[str, Any]:
        """Returns an entry for each token, with the token's alternatives."""
        content = [
            {
                **_named(texts[token.token_id], token.logprob),
                "top_logprobs": [_named(texts[other.token_id], other.logprob) for other in token.top_logprobs],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


def _call_delta(call: CallDelta) -> dict[str, Any]:
    """Returns a part of a tool call; id and name come with the first part alone."""
    if not call.name:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _named(text: str, logprob: float | None) -> dict[str, Any]:
    # A token with a part of a character has the text U+FFFD; the router does not report the bytes.
    whole = "\ufffd" not in text
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode()) if whole else None}


class CompletionShape(AnswerShape):
    """The form of `/v1/completions`. Text offsets count the characters of the tokens' own texts."""

    prefix = "cmpl"
    whole_object = piece_object = "text_completion"
    _offset = 0

    def answer_fields(self, completion: Completion) -> dict[str, Any]:
        """Returns the text."""
        return {"text": completion.text}

    def delta_fields(self, text: str) -> dict[str, Any]:
        """Returns the text, as `answer_fields` does."""
        return {"text": text}

    def logprobs(self, tokens: Sequence[Token], texts: Texts) -> dict[str, Any]:
        """Returns four lists with an entry for each token; offsets continue from the piece before."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(texts[token.token_id])
        return {
            "tokens": [texts[token.token_id] for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [
                {texts[other.token_id]: _finite(other.logprob) for other in reversed(token.top_logprobs)}
                for token in tokens
            ],
            "text_offset": offsets,
        }
