"""Passes of decoder-only models: answers share a pass, and prompts that begin together share fetched experts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice

import torch

from zipmoe.model.passes.prompt_pass import PromptPass, PromptResult
from zipmoe.model.passes.ragged import BatchRow, RaggedModel
from zipmoe.residency.pools import Phase
from zipmoe.services.router.engine.passes import StepExperts
from zipmoe.serving.pages import PAGE_TOKENS
from zipmoe.serving.planner import TicketWork
from zipmoe.serving.ticket import PageReuse, Ticket


class SharedPasses:
    """A `StepModel` over KV pages.

    A step computes only some layers of its prompts: rows times layers is about `prefill_rows` times all layers. The
    wait of the running answers for their next token then hardly depends on the length of the prompts.

    Thread: one at a time.
    """

    def __init__(
        self, model: RaggedModel, prefill_rows: int, experts: StepExperts, page_reuse: PageReuse, *, adopts_any: bool
    ) -> None:
        """Computes on `model` and tells `experts` of every pass before it begins.

        Args:
            model: computes the passes.
            prefill_rows: prompt rows that a step computes through all layers.
            experts: told of every pass.
            page_reuse: pages of other requests that have the bits of a prompt's beginning.
            adopts_any: whether requests adopt pages whatever their bits.
        """
        self.page_reuse = page_reuse
        self.adopts_any = adopts_any
        self._model = model
        self._prefill_rows = prefill_rows
        self._experts = experts
        self._prompts: dict[Ticket, PromptPass] = {}

    @property
    def page_count(self) -> int:
        """Pages of the KV pool."""
        return self._model.pool.page_count

    @property
    def shares_pages(self) -> bool:
        """Always true."""
        return True

    @property
    def most_together(self) -> int:
        """No limit."""
        return sys.maxsize

    def rows(self, works: Sequence[TicketWork]) -> list[list[torch.Tensor]]:
        """Computes rows of answers in one pass; see `StepModel`."""
        rows = [
            BatchRow(token_id, position, work.ticket.pages, chooses=work.completes and position >= work.end - 1)
            for work in works
            for position, token_id in enumerate(work.token_ids, work.begin)
        ]
        self._experts.step(Phase.DECODE, len(rows))
        logits = iter(self._model.compute(rows))
        return [[each for each in islice(logits, work.rows) if each is not None] for work in works]

    def advance_prompts(self, works: Sequence[TicketWork], scored: Sequence[int | None]) -> list[bool]:
        """Computes some layers of prompts; see `StepModel`."""
        prompts = [self._take(work, scored=each) for work, each in zip(works, scored, strict=True)]
        rows = sum(work.rows for work in works)
        self._experts.step(Phase.PREFILL, rows)
        self._model.advance(prompts, max(1, self._prefill_rows * self._model.layer_count // rows))
        for work, prompt in zip(works, prompts, strict=True):
            if prompt.layers_left or work.completes:
                self._prompts[work.ticket] = prompt
        return [not prompt.layers_left for prompt in prompts]

    def _take(self, work: TicketWork, *, scored: int | None) -> PromptPass:
        """Takes the pass of a prompt out of `_prompts`, or begins one; an error thus leaves no half-computed pass."""
        prompt = self._prompts.pop(work.ticket, None)
        if prompt is None:
            tokens = work.ticket.tokens[work.begin : work.end]
            prompt = self._model.prompt(tokens, work.begin, work.ticket.pages, scored=scored)
        return prompt

    def finish_prompt(self, ticket: Ticket) -> PromptResult:
        """Computes the head of the model; see `StepModel`."""
        return self._prompts.pop(ticket).finish()

    def fork(self, ticket: Ticket, sibling: Ticket) -> None:
        """Copies the page that both will write to; see `StepModel`."""
        if ticket.computed % PAGE_TOKENS:
            place = ticket.computed // PAGE_TOKENS
            self._model.pool.copy_page(ticket.pages[place], sibling.pages[place])

    def forget(self, ticket: Ticket) -> None:
        """Drops the unfinished pass of a prompt."""
        self._prompts.pop(ticket, None)
