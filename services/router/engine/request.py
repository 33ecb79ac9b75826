"""A generation request and the events that the engine emits for it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from zipmoe.model.conversation.answer_formats import AnswerReading
from zipmoe.model.conversation.chat_request import ChatChanges
from zipmoe.model.passes.head import PromptScores
from zipmoe.model.text.grammar import Grammar
from zipmoe.model.text.sampling import Choice, SamplingParams
from zipmoe.model.text.tool_grammar import DemandedCalls
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
        min_new_tokens: number of tokens before which none of `stop_token_ids` is chosen.
        top_logprobs: alternatives to report beside each token's log-probability; None reports neither.
        prompt_logprobs: the same for the tokens of the prompt.
        forced_token_ids: tokens that are emitted instead of the model's choice, one per step.
        skip_special_tokens: whether the text leaves special tokens out.
        choices: number of answers; choice i draws with the seed plus i.
        best_of: number of answers that are generated, at least `choices`; the likeliest are returned.
        prompt_text: text of the prompt, for a client that asks for it.
        reports_logprobs: whether the client gets the log-probabilities, which `best_of` needs in any case.
        shown_ids: special tokens that appear in the answer's text by their names: markers that `reading` needs.
        reading: how reasoning and tool calls are separated from the text; None leaves all of it text.
        chat_changes: changes that were made to the conversation before it was rendered.
        demanded_calls: the tool calls of which the answer has to consist; None if the model decides.
        grammar: the grammar that the answer follows; None for any answer.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    forced_token_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0
    skip_special_tokens: bool = True
    choices: int = 1
    best_of: int = 1
    prompt_text: str | None = None
    reports_logprobs: bool = False
    shown_ids: frozenset[int] = frozenset()
    reading: AnswerReading | None = None
    chat_changes: ChatChanges = field(default_factory=ChatChanges)
    demanded_calls: DemandedCalls | None = None
    grammar: Grammar | None = None

    @property
    def most_tokens(self) -> int:
        """The most tokens that prompt and answer may have together."""
        return len(self.prompt_ids) + self.max_new_tokens

    def of_choice(self, number: int) -> GenerationSpec:
        """Returns the request of one answer. The log-probabilities of the prompt belong to answer 0 alone."""
        if not number:
            return self
        return replace(self, sampling=self.sampling.of_choice(number), prompt_logprobs=None)


@dataclass(frozen=True)
class RequestProgress:
    """The request waits, or its prompt is being prefilled.

    Attributes:
        queue_position: place among the waiting requests, from 1; 0 after the admission.
        prompt_tokens_done: prompt tokens that are computed or adopted; layers count as shares of tokens.
        prompt_tokens: length of the prompt.
    """

    queue_position: int
    prompt_tokens_done: int
    prompt_tokens: int


@dataclass(frozen=True)
class RequestStarted:
    """The prompt has been prefilled."""

    prompt_tokens: int
    scores: PromptScores | None
    """Log-probabilities of the prompt; None unless asked for."""


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

    stop_string: str = ""
    """The stop string that ended the answer; empty if something else did."""


@dataclass(frozen=True)
class RequestFailed:
    """The generation has ended with an error; the events before it are valid, but the answer is not complete."""

    error: Exception


Event = RequestProgress | RequestStarted | RequestToken | RequestFinished | RequestFailed


@dataclass(eq=False)
class Request:
    """A request that the engine runs.

    Attributes:
        emit: takes an event; must not block. Called from the thread that submits the request, and then from the model
            thread only.
        unread: tells whether the request should pause because of too many unread events; called from the model thread
            only.
        deadline_s: deadline of the client's call on `time.monotonic`; infinite without one.
        arrived_s: arrival on `time.perf_counter`.
        wants_progress: whether `RequestProgress` is emitted before the start.
        cancelled: set by `Engine.cancel`; the request ends before its next step.
        followers: requests for further answers to the same prompt. They begin when the prompt is computed.
    """

    spec: GenerationSpec
    emit: Callable[[Event], None]
    unread: Callable[[], bool] = lambda: False
    deadline_s: float = math.inf
    wants_progress: bool = False
    arrived_s: float = field(default_factory=time.perf_counter)
    cancelled: threading.Event = field(default_factory=threading.Event)
    followers: Sequence[Request] = ()
