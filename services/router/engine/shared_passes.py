"""Passes of decoder-only models: answers share a pass, and prompts that begin together share fetched experts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice

import structlog
import torch

from zipmoe.model.passes.prompt_pass import PromptPass, PromptResult
from zipmoe.model.passes.ragged import BatchRow, RaggedModel
from zipmoe.model.program.start import proof_pages
from zipmoe.services.router.engine.mtp_drafts import MtpDrafts
from zipmoe.serving.pages import PAGE_TOKENS
from zipmoe.serving.planner import TicketWork
from zipmoe.serving.ticket import PageReuse, Ticket

_LOG = structlog.get_logger(__name__)


class SharedPasses:
    """A `StepModel` over KV pages.

    A step computes only some layers of its prompts: rows times layers is about `prefill_rows` times all layers. The
    wait of the running answers for their next token then hardly depends on the length of the prompts.

    Thread: one at a time.
    """

    def __init__(
        self,
        model: RaggedModel,
        prefill_rows: int,
        page_reuse: PageReuse,
        *,
        adopts_any: bool,
        mtp: MtpDrafts | None = None,
    ) -> None:
        """Prepares passes.

        Args:
            model: computes the passes.
            prefill_rows: prompt rows that a step computes through all layers.
            page_reuse: pages of other requests that have the bits of a prompt's beginning.
            adopts_any: whether requests adopt pages whatever their bits.
            mtp: gets the hidden states of all rows; None without layers for multi-token prediction.
        """
        self.page_reuse = page_reuse
        self.adopts_any = adopts_any
        self._model = model
        self._prefill_rows = prefill_rows
        self.mtp = mtp
        """Drafts by layers for multi-token prediction; None without such layers."""
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
        hidden_states: list[torch.Tensor] | None = None if self.mtp is None else []
        logits = iter(self._model.compute(rows, hidden_states))
        if self.mtp is not None and hidden_states:
            left = iter(hidden_states)
            for work in works:
                self.mtp.computed(work.ticket, work.begin, torch.stack(list(islice(left, work.rows))))
        return [[each for each in islice(logits, work.rows) if each is not None] for work in works]

    @property
    def pages_to_prepare(self) -> int:
        """Pages for the recording of passes with a frequent number of rows; see `StepModel`."""
        rows = self._model.rows_to_record
        return proof_pages(rows) if rows else 0

    def prepare(self, pages: Sequence[int]) -> None:
        """Records the pass of a number of rows that has become frequent."""
        rows = self._model.rows_to_record
        report = self._model.record_rows(rows, pages)
        log = _LOG.warning if report.failed or report.eager else _LOG.info
        log(
            "rows_recorded",
            rows=rows,
            layers=report.layers,
            recorded=report.recorded_layers,
            eager=report.why_eager,
            by_torch=report.why_not_native,
            bytes=report.nbytes,
            seconds=round(report.seconds, 2),
        )

    def advance_prompts(self, works: Sequence[TicketWork], scored: Sequence[int | None]) -> list[bool]:
        """Computes some layers of prompts; see `StepModel`."""
        prompts = [self._take(work, scored=each) for work, each in zip(works, scored, strict=True)]
        rows = sum(work.rows for work in works)
        self._model.advance(prompts, max(1, self._prefill_rows * self._model.layer_count // rows))
        for work, prompt in zip(works, prompts, strict=True):
            if prompt.layers_left or work.completes:
                self._prompts[work.ticket] = prompt
            elif self.mtp is not None:
                self._finish(work.ticket, prompt)
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
        return self._finish(ticket, self._prompts.pop(ticket))

    def _finish(self, ticket: Ticket, prompt: PromptPass) -> PromptResult:
        result = prompt.finish()
        if self.mtp is not None and result.hidden_states is not None:
            self.mtp.computed(ticket, prompt.begin, result.hidden_states)
        return result

    def prompt_share(self, ticket: Ticket) -> float:
        """Returns the computed share of a prompt's layers; see `StepModel`."""
        prompt = self._prompts.get(ticket)
        return 0.0 if prompt is None else 1 - prompt.layers_left / self._model.layer_count

    def fork(self, ticket: Ticket, sibling: Ticket) -> None:
        """Copies the page that both will write to; see `StepModel`."""
        if ticket.computed % PAGE_TOKENS:
            place = ticket.computed // PAGE_TOKENS
            self._model.pool.copy_page(ticket.pages[place], sibling.pages[place])

    def forget(self, ticket: Ticket) -> None:
        """Drops the unfinished pass of a prompt, and hidden states."""
        self._prompts.pop(ticket, None)
        if self.mtp is not None:
            self.mtp.forget(ticket)
