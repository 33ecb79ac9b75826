"""Answers in OpenAI's JSON: whole answers and stream pieces, for chats and for plain completions."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from zipmoe.client import CallDelta, Completion, Finished, FinishReason, Started, Token, TokenText, Usage
from zipmoe.services.gateway.answers.answer_writer import Texts
from zipmoe.services.gateway.answers.token_texts import name_of

_IMPOSSIBLE: Final = -9999.0
"""OpenAI's number for the logarithm of zero: JSON has no infinity."""


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _IMPOSSIBLE


def _usage(usages: Sequence[Usage], choices: int) -> dict[str, Any]:
    """Adds up the usage of all answers; a prompt counts once, for the first of its `choices` answers."""
    prompts = usages[::choices]
    prompt_tokens = sum(usage.prompt_tokens for usage in prompts)
    generated = sum(usage.generated_tokens + usage.discarded_tokens for usage in usages)
    details = {"cached_tokens": sum(usage.reused_tokens for usage in prompts)}
    if approximate := sum(usage.approximate_tokens for usage in prompts):
        details["approximate_tokens"] = approximate
    accepted = sum(usage.accepted_tokens for usage in usages)
    predicted = {
        "accepted_prediction_tokens": accepted,
        "rejected_prediction_tokens": sum(usage.drafted_tokens for usage in usages) - accepted,
    }
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
        "prompt_tokens_details": details,
        "completion_tokens_details": predicted,
    }


def prompt_entries(prompt: Started | Completion) -> list[Token]:
    """Returns the tokens of a prompt with their log-probabilities, as entries in front of an answer's tokens.

    The first token has no log-probability. Without the prompt's token ids there is no entry.
    """
    ids = prompt.prompt_token_ids
    if not ids:
        return []
    places = len(ids) - 1
    logprobs = (None, *(prompt.prompt_logprobs or [None] * places))
    tops = ((), *(prompt.prompt_top_logprobs or [()] * places))
    return [Token(token_id, "", logprob, top) for token_id, logprob, top in zip(ids, logprobs, tops, strict=True)]


@dataclass
class AnswerShape(ABC):
    """The JSON form of the answers to one HTTP request, which are numbered from 0 as its choices.

    Attributes:
        request_id: id of the request, also in the router's log.
        model: the model's name as the client gave it.
        fingerprint: id of the version and the weights.
        with_logprobs: whether the client asked for log-probabilities.
        echo: whether each answer begins with its prompt.
        choices: answers to each prompt.
        created: time of the request, in seconds since 1970.
    """

    request_id: str
    model: str
    fingerprint: str
    with_logprobs: bool
    echo: bool = False
    choices: int = 1
    created: int = field(default_factory=lambda: int(time.time()))
    _offsets: dict[int, int] = field(default_factory=lambda: defaultdict(int), init=False)
    """Characters of the tokens of each answer so far."""

    prefix = ""
    whole_object = ""
    piece_object = ""

    def whole(self, completions: Sequence[Completion], texts: Texts) -> dict[str, Any]:
        """Returns all answers as a whole."""
        choices = []
        for index, completion in enumerate(completions):
            entries = [*(prompt_entries(completion) if self.echo else ()), *completion.tokens]
            choices.append(
                {
                    "index": index,
                    **self.answer_fields(completion),
                    "logprobs": self.logprobs(index, entries, texts) if self.with_logprobs else None,
                    "finish_reason": self.end(completion.finish_reason, calls_tools=bool(completion.tool_calls)),
                }
            )
        usage = _usage([completion.usage for completion in completions], self.choices)
        return {**self._head(self.whole_object), "choices": choices, "usage": usage}

    def piece(
        self, index: int, text: str, tokens: Sequence[Token], texts: Texts, finish_reason: str | None = None
    ) -> dict[str, Any]:
        """Returns a piece of a stream: some text of an answer with the tokens that completed it, or the end."""
        logprobs = self.logprobs(index, tokens, texts) if self.with_logprobs and tokens else None
        choice = {"index": index, **self.delta_fields(text), "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head(self.piece_object), "choices": [choice]}

    def usage_piece(self, usages: Sequence[Usage]) -> dict[str, Any]:
        """Returns the piece with the usage, the last of a stream if the client asked for it."""
        return {**self._head(self.piece_object), "choices": [], "usage": _usage(usages, self.choices)}

    def opening(self, index: int) -> dict[str, Any] | None:
        """Returns the first piece of an answer, before any text; None if there is none."""
        return None

    def pieces_before(self, index: int, event: Token | Finished) -> list[dict[str, Any]]:
        """Returns the pieces of a stream that come before the text of an event: its reasoning."""
        return []

    def pieces_after(self, index: int, event: Token | Finished) -> list[dict[str, Any]]:
        """Returns the pieces of a stream that come after the text of an event: its tool calls."""
        return []

    def end(self, reason: FinishReason, *, calls_tools: bool) -> str:
        """Returns the reason why the answer has ended."""
        return reason.value

    @abstractmethod
    def answer_fields(self, completion: Completion) -> dict[str, Any]:
        """Returns the fields of a choice that hold a whole answer."""

    @abstractmethod
    def delta_fields(self, text: str) -> dict[str, Any]:
        """Returns the fields of a choice that hold a piece of text."""

    @abstractmethod
    def logprobs(self, index: int, tokens: Sequence[Token], texts: Texts) -> dict[str, Any]:
        """Returns the log-probabilities of some tokens of an answer."""

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

    def opening(self, index: int) -> dict[str, Any]:
        """Returns the piece that names the assistant as the role."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return {**self._head(self.piece_object), "choices": [choice]}

    def answer_fields(self, completion: Completion) -> dict[str, Any]:
        """Returns a message."""
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

    def pieces_before(self, index: int, event: Token | Finished) -> list[dict[str, Any]]:
        """Returns a piece with the reasoning of an event, if it has any."""
        return [self._delta(index, {"reasoning_content": event.reasoning})] if event.reasoning else []

    def pieces_after(self, index: int, event: Token | Finished) -> list[dict[str, Any]]:
        """Returns a piece with the tool calls of an event, if it has any."""
        if not event.tool_calls:
            return []
        return [self._delta(index, {"tool_calls": [_call_delta(call) for call in event.tool_calls]})]

    def end(self, reason: FinishReason, *, calls_tools: bool) -> str:
        """Returns `tool_calls` where an answer has called tools and is complete."""
        return "tool_calls" if calls_tools and reason is FinishReason.STOP else reason.value

    def _delta(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._head(self.piece_object), "choices": [choice]}

    def delta_fields(self, text: str) -> dict[str, Any]:
        """Returns a delta; the delta of the end is empty."""
        return {"delta": {"content": text} if text else {}}

    def logprobs(self, index: int, tokens: Sequence[Token], texts: Texts) -> dict[str, Any]:
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


def _named(token: TokenText, logprob: float | None) -> dict[str, Any]:
    nbytes = list(token.nbytes) or None  # nothing: the tokenizer does not tell
    return {"token": name_of(token), "logprob": None if logprob is None else _finite(logprob), "bytes": nbytes}


class CompletionShape(AnswerShape):
    """The form of `/v1/completions`. Text offsets count the characters of the tokens' own texts."""

    prefix = "cmpl"
    whole_object = piece_object = "text_completion"

    def answer_fields(self, completion: Completion) -> dict[str, Any]:
        """Returns the text, after its prompt if it is echoed."""
        return {"text": (completion.prompt_text if self.echo else "") + completion.text}

    def delta_fields(self, text: str) -> dict[str, Any]:
        """Returns the text, as `answer_fields` does."""
        return {"text": text}

    def logprobs(self, index: int, tokens: Sequence[Token], texts: Texts) -> dict[str, Any]:
        """Returns four lists with an entry for each token; offsets continue from the piece before."""
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(texts[token.token_id].text)
        return {
            "tokens": [name_of(texts[token.token_id]) for token in tokens],
            "token_logprobs": [None if token.logprob is None else _finite(token.logprob) for token in tokens],
            "top_logprobs": [
                None
                if token.logprob is None
                else {name_of(texts[other.token_id]): _finite(other.logprob) for other in reversed(token.top_logprobs)}
                for token in tokens
            ],
            "text_offset": offsets,
        }
