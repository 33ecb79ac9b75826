"""State of one request on the model thread: sampler, generated tokens, text and stop conditions."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

import torch
from transformers import LogitsProcessorList

from zipmoe.model.passes.prompt_pass import PromptResult
from zipmoe.model.stock.generation_settings import StockGeneration
from zipmoe.model.text.grammar import GrammarProgress
from zipmoe.model.text.grammar_mask import GrammarMask
from zipmoe.model.text.sampling import Sampler
from zipmoe.model.text.token_ids_only import AnyTokenizer
from zipmoe.model.text.tokenizer import StopStrings, StreamingDetokenizer
from zipmoe.services.router.engine.request import (
    EndReason,
    Event,
    Request,
    RequestFinished,
    RequestProgress,
    RequestStarted,
    RequestToken,
)
from zipmoe.services.router.experts.read_account import ExpertUsage
from zipmoe.serving.drafts import MOST_DRAFTS
from zipmoe.serving.ticket import Ticket


class Generation:
    """A request with its ticket, sampler and text. Thread: the model thread, except the constructor.

    Attributes:
        has_begun: whether the prompt has been prefilled once.
        progress: the latest progress that was emitted.
    """

    def __init__(self, request: Request, ticket: Ticket, tokenizer: AnyTokenizer, stock: StockGeneration) -> None:
        """Prepares the state of a request before its first step.

        Args:
            request: the submitted request.
            ticket: the request's place in the plan; the tokens of the answer are appended to it.
            tokenizer: turns tokens into text.
            stock: generation settings of the model.
        """
        self.request = request
        self.spec = request.spec
        self.ticket = ticket
        self.last_token_s = 0.0
        self.drafted_tokens = self.accepted_tokens = 0
        self.has_begun = False
        self.progress: RequestProgress | None = None
        self._stock = stock
        self._usage = ExpertUsage()
        self._text = StreamingDetokenizer(
            tokenizer, self.spec.shown_ids, skip_special_tokens=self.spec.skip_special_tokens
        )
        self._stops = StopStrings(self.spec.stop_strings)
        self._first_token_s = 0.0

    @property
    def generated_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ticket.tokens) - self.ticket.prompt_tokens

    def charge(self, usage: ExpertUsage) -> None:
        """Adds the request's share of a pass's expert usage."""
        self._usage.hits += usage.hits
        self._usage.misses += usage.misses
        self._usage.bytes_read += usage.bytes_read
        self._usage.stall_s += usage.stall_s

    def begin(self, prompt: PromptResult) -> list[Event]:
        """Chooses the first token after the prompt, unless the request wants no token.

        Returns:
            The events to emit: the start, the token if there is one, and the end if the generation has ended.
        """
        self.has_begun = True
        started = RequestStarted(len(self.spec.prompt_ids), prompt.scores)
        if not self.spec.max_new_tokens:
            return [started, self._finish(EndReason.LENGTH)]
        return [started, *self.take(prompt.logits)]

    def take(self, logits: torch.Tensor) -> list[Event]:
        """Chooses the next token.

        Returns:
            The events to emit: the token, and the end if the generation has ended.
        """
        place, forced = self.generated_tokens, self.spec.forced_token_ids
        choice = self._sampler.force(logits, forced[place]) if place < len(forced) else self._sampler.choose(logits)
        self.ticket.append(choice.token_id)
        self.last_token_s = time.perf_counter()
        self._first_token_s = self._first_token_s or self.last_token_s
        ends = choice.token_id in self.spec.stop_token_ids
        text = "" if ends else self._stops.feed(self._text.feed(choice.token_id))
        token = RequestToken(choice, text)
        if ends or self._stops.met is not None:
            return [token, self._finish(EndReason.STOP)]
        if self.generated_tokens == self.spec.max_new_tokens:
            return [token, self._finish(EndReason.LENGTH)]
        if self._progress is not None:
            self.ticket.certain = self._progress.certain(MOST_DRAFTS)
        return [token]

    @cached_property
    def _progress(self) -> GrammarProgress | None:
        return None if self.spec.grammar is None else GrammarProgress(self.spec.grammar)

    @cached_property
    def _sampler(self) -> Sampler:
        spec, progress = self.spec, self._progress
        context_ids = self._stock.decoder_input(spec.prompt_ids)
        fields: dict[str, Any] = spec.sampling.generation_fields()
        if spec.min_new_tokens and spec.stop_token_ids:
            fields |= {"min_new_tokens": spec.min_new_tokens, "eos_token_id": sorted(spec.stop_token_ids)}
        own = spec.sampling.processors(len(context_ids))
        if progress is not None:
            own = LogitsProcessorList([*(own or ()), GrammarMask(progress)])
        rules = self._stock.rules(fields, spec.prompt_ids, spec.max_new_tokens, own)
        return Sampler(rules, context_ids, seed=spec.sampling.seed, top_logprobs=spec.top_logprobs, progress=progress)

    def _finish(self, reason: EndReason) -> RequestFinished:
        text = self._stops.feed(self._text.finish()) + self._stops.finish()
        now = time.perf_counter()
        return RequestFinished(
            reason=EndReason.STOP if self._stops.met is not None else reason,
            text=text,
            prompt_tokens=len(self.spec.prompt_ids),
            generated_tokens=self.generated_tokens,
            time_to_first_token_s=(self._first_token_s or now) - self.request.arrived_s,
            duration_s=now - self.request.arrived_s,
            experts=self._usage,
            reused_tokens=self.ticket.reused_tokens,
            approximate_tokens=self.ticket.approximate_tokens,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
            stop_string=self._stops.met or "",
        )


def shares(usage: ExpertUsage, rows: list[int]) -> list[ExpertUsage]:
    """Divides a pass's expert usage over the requests in proportion to `rows`; the shares add up to `usage`."""
    total, taken, parts = sum(rows), 0, []
    for count in rows:
        before, taken = taken, taken + count

        def part(whole: int, before: int = before, taken: int = taken) -> int:
            return whole * taken // total - whole * before // total

        parts.append(
            ExpertUsage(part(usage.hits), part(usage.misses), part(usage.bytes_read), usage.stall_s * count / total)
        )
    return parts
