"""A request for a generation, and what is told about it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from zipmoe.model.text.sampling import Choice, SamplingParams
from zipmoe.services.router.experts.read_account import ExpertUsage


class EndReason(Enum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class GenerationSpec:
    """A validated request.

    Attributes:
        prompt_ids: token ids of the prompt, at least one.
        sampling: how the next token is chosen.
        max_new_tokens: the most tokens to generate; 0 scores the prompt only.
        stop_token_ids: ids that end generation, the model's own included unless they are to be ignored.
        top_logprobs: alternatives to report beside each token's log-probability; None reports neither.
        forced_token_ids: emitted instead of the model's choice, one per step.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    forced_token_ids: tuple[int, ...] = ()

    @property
    def most_tokens(self) -> int:
        """The most that prompt and answer may come to."""
        return len(self.prompt_ids) + self.max_new_tokens


@dataclass(frozen=True)
class RequestStarted:
    """The prompt has been prefilled."""

    prompt_tokens: int
    prompt_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class RequestToken:
    """One more token; `text` is what it completed."""

    choice: Choice
    text: str


@dataclass(frozen=True)
class RequestFinished:
    """The generation is complete."""

    reason: EndReason
    text: str
    prompt_tokens: int
    generated_tokens: int
    time_to_first_token_s: float
    duration_s: float
    experts: ExpertUsage


@dataclass(frozen=True)
class RequestFailed:
    """The generation has ended with an error; what was streamed before is valid but not complete."""

    error: Exception


Event = RequestStarted | RequestToken | RequestFinished | RequestFailed


@dataclass(eq=False)
class Request:
    """A request that the engine runs.

    Attributes:
        emit: takes what is told; called from the model thread only, must not block.
        unread: whether so much of that has not been read that the request had better pause; called from there as well.
        deadline_s: on `time.monotonic`, when nobody waits for it any more.
        arrived_s: on `time.perf_counter`.
    """

    spec: GenerationSpec
    emit: Callable[[Event], None]
    unread: Callable[[], bool] = lambda: False
    deadline_s: float = math.inf
    arrived_s: float = field(default_factory=time.perf_counter)
    cancelled: threading.Event = field(default_factory=threading.Event)
