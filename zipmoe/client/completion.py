"""A whole answer, for callers that do not stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zipmoe.client.dialogue import ToolCall
from zipmoe.client.event import CallDelta, Event, Finished, FinishReason, Started, Token, TokenLogprob, Usage
from zipmoe.errors import Unavailable


@dataclass(frozen=True)
class Completion:
    """The whole answer of a generation stream.

    Attributes:
        request_id: the request's id in the router's log.
        text: the whole text, stop string excluded.
        tokens: the generated tokens in order.
        prompt_logprobs: natural log-probabilities of prompt tokens 1 .. n-1; empty unless asked for.
        prompt_top_logprobs: the likeliest tokens at these places, best first; likewise.
        prompt_token_ids: the prompt's token ids; likewise.
        prompt_text: the prompt's text; likewise.
        finish_reason: why the generation ended.
        usage: counts and times of this request.
        reasoning: the reasoning before the text; only with `Output.separate_parts`.
        tool_calls: the tools that the answer calls; only with `Output.separate_parts`.
    """

    request_id: str
    text: str
    tokens: tuple[Token, ...]
    prompt_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    usage: Usage
    prompt_top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    prompt_text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the generated tokens in order."""
        return tuple(token.token_id for token in self.tokens)


def complete(events: Iterable[Event]) -> Completion:
    """Collects a stream of events into one answer.

    Raises:
        Unavailable: the stream ended before its `Finished`.
        ZipMoeError: any error that the stream itself raises.
    """
    return complete_all(events, 1)[0]


def complete_all(events: Iterable[Event], choices: int) -> list[Completion]:
    """Collects a stream of events into all its answers, by number.

    Args:
        events: the stream.
        choices: number of answers.

    Raises:
        Unavailable: the stream ended before the `Finished` of each answer.
        ZipMoeError: any error that the stream itself raises.
    """
    started = Started(request_id="", prompt_tokens=0)
    tokens: list[list[Token]] = [[] for _ in range(choices)]
    finished: dict[int, Finished] = {}
    for event in events:
        if isinstance(event, Started):
            started = event
        elif isinstance(event, Token):
            tokens[event.choice].append(event)
        elif isinstance(event, Finished):
            finished[event.choice] = event
            if len(finished) == choices:
                return [_completion(started, tokens[number], finished[number]) for number in range(choices)]
    count = sum(map(len, tokens))
    raise Unavailable(f"the stream ended after {count} tokens without saying that it is complete")


def _completion(started: Started, tokens: list[Token], finished: Finished) -> Completion:
    return Completion(
        request_id=started.request_id,
        text="".join(token.text for token in tokens) + finished.text,
        tokens=tuple(tokens),
        prompt_logprobs=started.prompt_logprobs,
        finish_reason=finished.reason,
        usage=finished.usage,
        prompt_top_logprobs=started.prompt_top_logprobs,
        prompt_token_ids=started.prompt_token_ids,
        prompt_text=started.prompt_text,
        reasoning="".join(token.reasoning for token in tokens) + finished.reasoning,
        tool_calls=_calls([delta for event in tokens for delta in event.tool_calls] + [*finished.tool_calls]),
    )


def _calls(deltas: Iterable[CallDelta]) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    for delta in deltas:
        if delta.index == len(calls):
            calls.append(ToolCall(delta.id, delta.name, delta.arguments))
        else:
            last = calls[-1]
            calls[-1] = ToolCall(last.id, last.name, last.arguments + delta.arguments)
    return tuple(calls)
