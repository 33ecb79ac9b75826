"""A generation request and the events that the engine emits for it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from zipmoe.model.text.grammar import Grammar
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
        sampling: parameters for choosing the next token.
        max_new_tokens: the most tokens to generate; 0 scores the prompt only.
        stop_token_ids: ids that end generation, including the model's own unless the client ignores these.
        top_logprobs: alternatives to report beside each token's log-probability; None reports neither.
        forced_token_ids: tokens that are emitted instead of the model's choice, one per step.
        grammar: the grammar that the answer follows; None for any answer.
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
    grammar: Grammar | None = None

    @property
    def most_tokens(self) -> int:
        """The most tokens that prompt and answer may have together."""
        return len(self.prompt_ids) + self.max_new_tokens


@dataclass(frozen=True)
class RequestStarted:
    """The prompt has been prefilled."""

    prompt_tokens: int
    prompt_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class RequestToken:
    """One more generated token; `text` is the text that the token completed."""

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
    reused_tokens: int
    """Prompt tokens that were adopted from the cache instead of computed."""

    approximate_tokens: int
    """Those among them whose bits may not be those of the prompt."""

    drafted_tokens: int = 0
    """Drafted tokens that were verified."""

    accepted_tokens: int = 0
    """Drafted tokens after which the answer went on in the same pass: the passes that were saved."""


@dataclass(frozen=True)
class RequestFailed:
    """The generation has ended with an error; the events before it are valid, but the answer is not complete."""

    error: Exception


Event = RequestStarted | RequestToken | RequestFinished | RequestFailed


@dataclass(eq=False)
class Request:
    """A request that the engine runs.

    Attributes:
        emit: takes an event; called from the model thread only, must not block.
        unread: tells whether the request should pause because of too many unread events; called from the model thread
            only.
        deadline_s: deadline of the client's call on `time.monotonic`; infinite without one.
        arrived_s: arrival on `time.perf_counter`.
        cancelled: set by `Engine.cancel`; the request ends before its next step.
    """

    spec: GenerationSpec
    emit: Callable[[Event], None]
    unread: Callable[[], bool] = lambda: False
    deadline_s: float = math.inf
    arrived_s: float = field(default_factory=time.perf_counter)
    cancelled: threading.Event = field(default_factory=threading.Event)
