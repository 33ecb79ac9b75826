"""Events of a generation stream as plain values: one `Started`, any number of `Token`, one `Finished`.

A request that asks for it gets any number of `PromptProgress` before `Started`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple


class FinishReason(enum.Enum):
    """Why a generation ended."""

    STOP = "stop"
    """An end-of-sequence token, a stop token or a stop string was met."""

    LENGTH = "length"
    """`max_new_tokens` or the end of the context was reached."""


@dataclass(frozen=True)
class PromptProgress:
    """How far a request is that waits, or whose prompt is being prefilled.

    Attributes:
        queue_position: place in the router's queue: 1 is admitted next, 0 has been admitted.
        prompt_tokens_done: prompt tokens that are computed or adopted from the cache; falls back after a preemption.
        prompt_tokens: the prompt's length in tokens.
    """

    queue_position: int
    prompt_tokens_done: int
    prompt_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """A token id and its natural log-probability under the model's unmodified distribution."""

    token_id: int
    logprob: float


class TokenText(NamedTuple):
    """The text of a token alone and its bytes, also those of an incomplete character; none where they are not known."""

    text: str
    nbytes: bytes


@dataclass(frozen=True)
class Started:
    """The prompt has been accepted and prefilled.

    Attributes:
        request_id: the request's id in the router's log.
        prompt_tokens: the prompt's length in tokens.
        prompt_logprobs: natural log-probabilities of prompt tokens 1 .. n-1; empty unless asked for.
        prompt_top_logprobs: the likeliest tokens at the places of prompt tokens 1 .. n-1, best first; likewise.
        prompt_token_ids: the prompt's token ids; likewise.
        prompt_text: the prompt's text; likewise.
        system_message_merged: whether system messages were put before the first user message, since the chat template
            refuses them.
        broken_control_tokens: control tokens in contents of users and tools, which were broken up to stay text.
        tools_unseen: whether the chat template does not show tools to the model.
    """

    request_id: str
    prompt_tokens: int
    prompt_logprobs: tuple[float, ...] = ()
    prompt_top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    prompt_text: str = ""
    system_message_merged: bool = False
    broken_control_tokens: tuple[str, ...] = ()
    tools_unseen: bool = False


@dataclass(frozen=True)
class CallDelta:
    """A part of a tool call; the parts of a call come in order, call after call.

    Attributes:
        index: the call's number in the answer, from 0.
        id: the call's id, in its first part.
        name: the tool's name, in the call's first part.
        arguments: text that continues the call's arguments.
    """

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        token_id: the token's id.
        text: the text that this token completed; empty while a character or a stop string is undecided.
        logprob: natural log-probability under the model's unmodified distribution; None unless asked for.
        top_logprobs: the likeliest alternatives, best first; empty unless asked for.
        choice: number of the answer that the token belongs to, from 0.
        reasoning: the reasoning that this token completed; only with `Output.separate_parts`.
        tool_calls: parts of tool calls that this token completed; only with `Output.separate_parts`.
    """

    token_id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()
    choice: int = 0
    reasoning: str = ""
    tool_calls: tuple[CallDelta, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Counts and times of a request, measured by the router.

    Attributes:
        prompt_tokens: the prompt's length in tokens.
        generated_tokens: tokens that were generated.
        time_to_first_token_s: seconds from arrival until the first token.
        duration_s: seconds from arrival until the end.
        expert_hits: expert activations served from memory.
        expert_misses: expert activations that needed a read from disk.
        expert_bytes_read: bytes of experts read from disk.
        expert_stall_s: seconds the model waited for experts.
        reused_tokens: prompt tokens that were in the cache and not computed.
        approximate_tokens: those among them whose bits may not be those of the prompt computed at once; 0 unless the
            router runs with `--reuse-answers`.
        drafted_tokens: drafted tokens that were verified.
        accepted_tokens: those among them after which the answer went on in the same pass.
        discarded_tokens: tokens of the answers that `best_of` left out; in the usage of answer 0.
    """

    prompt_tokens: int
    generated_tokens: int
    time_to_first_token_s: float
    duration_s: float
    expert_hits: int
    expert_misses: int
    expert_bytes_read: int
    expert_stall_s: float
    reused_tokens: int = 0
    approximate_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    discarded_tokens: int = 0

    @property
    def inter_token_s(self) -> float | None:
        """Mean seconds between two tokens; None for fewer than two tokens."""
        if self.generated_tokens < 2:
            return None
        return (self.duration_s - self.time_to_first_token_s) / (self.generated_tokens - 1)


@dataclass(frozen=True)
class Finished:
    """The generation is complete.

    Attributes:
        reason: why the generation ended.
        text: text that was held back for a stop string or an incomplete character.
        usage: counts and times of this request.
        choice: number of the answer that has ended, from 0.
        reasoning: reasoning that was held back; only with `Output.separate_parts`.
        tool_calls: parts of tool calls that were held back; only with `Output.separate_parts`.
        stop_string: the stop string that ended the answer; empty if something else did.
    """

    reason: FinishReason
    text: str
    usage: Usage
    choice: int = 0
    reasoning: str = ""
    tool_calls: tuple[CallDelta, ...] = ()
    stop_string: str = ""


Event = PromptProgress | Started | Token | Finished
"""One event of a generation stream."""
