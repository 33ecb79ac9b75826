"""The life of one generation request on the model thread: prefill, steps, stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

import torch

from services.router.experts import ArenaExperts, ExpertUsage
from zipmoe.model.build import BuiltModel
from zipmoe.model.sampling import Choice, Sampler, SamplingParams
from zipmoe.model.sequence import Sequence
from zipmoe.model.text import StopStrings, StreamingDetokenizer, Tokenizer


class FinishReason(Enum):
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
    def reserved_tokens(self) -> int:
        """Tokens of KV cache that the request may come to hold."""
        return len(self.prompt_ids) + self.max_new_tokens


@dataclass(frozen=True)
class Started:
    """The prompt has been prefilled."""

    prompt_tokens: int
    prompt_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Token:
    """One more token; `text` is what it completed."""

    choice: Choice
    text: str


@dataclass(frozen=True)
class Finished:
    """The generation is complete."""

    reason: FinishReason
    text: str
    prompt_tokens: int
    generated_tokens: int
    time_to_first_token_s: float
    duration_s: float
    experts: ExpertUsage


@dataclass(frozen=True)
class Failed:
    """The generation has ended with an error; what was streamed before is valid but not complete."""

    error: Exception


Event = Started | Token | Finished | Failed


@dataclass(eq=False)
class Request:
    """A request that the engine runs; `emit` may be called from the model thread only and must not block."""

    spec: GenerationSpec
    emit: Callable[[Event], None]
    arrived_s: float = field(default_factory=time.perf_counter)
    cancelled: threading.Event = field(default_factory=threading.Event)


class RunningRequest:
    """A request with its sequence, sampler and text; one `advance` is one forward step.

    Thread: the model thread.
    """

    def __init__(self, request: Request, model: BuiltModel, tokenizer: Tokenizer, experts: ArenaExperts) -> None:
        spec = request.spec
        self.request = request
        self.spec = spec
        self._experts = experts
        self._usage = ExpertUsage()
        self._sequence = Sequence(model)
        context_ids = () if model.encoder_decoder else spec.prompt_ids
        self._sampler = Sampler(spec.sampling, context_ids, top_logprobs=spec.top_logprobs)
        self._text = StreamingDetokenizer(tokenizer)
        self._stops = StopStrings(spec.stop_strings)
        self._generated: list[int] = []
        self._first_token_s = 0.0
        self.last_token_s = 0.0

    def advance(self) -> Finished | None:
        """Runs one forward step and emits what came of it; the result is the end of the request, if it has ended.

        Raises:
            ZipMoeError: the step failed; the request is over, the model is fine.
        """
        before = replace(self._experts.usage)
        try:
            logits = self._forward()
        finally:
            spent = self._experts.usage.since(before)
            self._usage = ExpertUsage(
                self._usage.hits + spent.hits,
                self._usage.misses + spent.misses,
                self._usage.bytes_read + spent.bytes_read,
                self._usage.stall_s + spent.stall_s,
            )
        if not self.spec.max_new_tokens:
            return self._finish(FinishReason.LENGTH)
        return self._take_token(logits)

    def _forward(self) -> torch.Tensor:
        if self._generated:
            return self._sequence.step(self._generated[-1])
        prefill = self._sequence.prefill(self.spec.prompt_ids, prompt_logprobs=self.spec.prompt_logprobs)
        self.request.emit(Started(len(self.spec.prompt_ids), prefill.prompt_logprobs or ()))
        return prefill.logits

    def _take_token(self, logits: torch.Tensor) -> Finished | None:
        position = len(self._generated)
        forced = self.spec.forced_token_ids
        choice = (
            self._sampler.force(logits, forced[position]) if position < len(forced) else self._sampler.choose(logits)
        )
        self._generated.append(choice.token_id)
        self.last_token_s = time.perf_counter()
        if position == 0:
            self._first_token_s = self.last_token_s
        ends = choice.token_id in self.spec.stop_token_ids
        text = "" if ends else self._stops.feed(self._text.feed(choice.token_id))
        self.request.emit(Token(choice, text))
        if ends or self._stops.met is not None:
            return self._finish(FinishReason.STOP)
        if len(self._generated) == self.spec.max_new_tokens:
            return self._finish(FinishReason.LENGTH)
        return None

    def _finish(self, reason: FinishReason) -> Finished:
        text = self._stops.feed(self._text.finish()) + self._stops.finish()
        now = time.perf_counter()
        finished = Finished(
            reason=FinishReason.STOP if self._stops.met is not None else reason,
            text=text,
            prompt_tokens=len(self.spec.prompt_ids),
            generated_tokens=len(self._generated),
            time_to_first_token_s=(self._first_token_s or now) - self.request.arrived_s,
            duration_s=now - self.request.arrived_s,
            experts=self._usage,
        )
        self.request.emit(finished)
        return finished
