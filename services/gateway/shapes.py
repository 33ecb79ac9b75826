"""Answers in OpenAI's JSON: whole answers and stream pieces, for chats and for plain completions."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from zipmoe.client import Completion, Token, Usage

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
            **self.text_fields(completion.text),
            "logprobs": logprobs,
            "finish_reason": completion.finish_reason.value,
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

    @abstractmethod
    def text_fields(self, text: str) -> dict[str, Any]:
        """Returns the fields of a choice that hold a whole text."""

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

    def opening(self) -> dict[str, Any]:
        """Returns the piece that names the assistant as the role."""
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return {**self._head(self.piece_object), "choices": [choice]}

    def text_fields(self, text: str) -> dict[str, Any]:
        """Returns a message."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

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


def _named(text: str, logprob: float | None) -> dict[str, Any]:
    # A token with a part of a character has the text U+FFFD; the router does not report the bytes.
    whole = "\ufffd" not in text
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode()) if whole else None}


class CompletionShape(AnswerShape):
    """The form of `/v1/completions`. Text offsets count the characters of the tokens' own texts."""

    prefix = "cmpl"
    whole_object = piece_object = "text_completion"
    _offset = 0

    def text_fields(self, text: str) -> dict[str, Any]:
        """Returns the text."""
        return {"text": text}

    def delta_fields(self, text: str) -> dict[str, Any]:
        """Returns the text, as `text_fields` does."""
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
