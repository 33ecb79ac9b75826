"""Requests that have caches of their own instead of pages, and share no pass or only those of answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from zipmoe.errors import InternalError
from zipmoe.model.build.build import BuiltModel
from zipmoe.model.passes.prompt_pass import PromptResult
from zipmoe.model.passes.sequence import Sequence as ModelSequence
from zipmoe.model.passes.side_by_side import SideBySide
from zipmoe.residency.pools import Phase
from zipmoe.services.router.engine.passes import StepListener
from zipmoe.serving.planner import TicketWork
from zipmoe.serving.ticket import Ticket


class SequencePasses:
    """A `StepModel` for any family; its pages are only counted, to bound what the caches take.

    Thread: one at a time.
    """

    def __init__(self, built: BuiltModel, page_count: int, listener: StepListener) -> None:
        """Computes on a model, and tells `listener` of every pass."""
        self._built = built
        self._page_count = page_count
        self._listener = listener
        self._sequences: dict[Ticket, tuple[ModelSequence, PromptResult]] = {}

    @property
    def page_count(self) -> int:
        """As many pages as the memory of the caches would be."""
        return self._page_count

    @property
    def reuses_pages(self) -> bool:
        """Never."""
        return False

    @property
    def most_together(self) -> int:
        """One."""
        return 1

    def rows(self, works: Sequence[TicketWork]) -> list[torch.Tensor | None]:
        """Computes rows of answers one by one, as `StepModel` says."""
        return [self._rows(work) for work in works]

    def advance_prompts(self, works: Sequence[TicketWork], scored: Sequence[bool]) -> list[bool]:
        """Computes whole prompts one by one, as `StepModel` says."""
        for work, each in zip(works, scored, strict=True):
            self._prompt(work, scored=each)
        return [True] * len(works)

    def _prompt(self, work: TicketWork, *, scored: bool) -> None:
        if work.begin:
            raise InternalError("a prompt that is computed in turn begins at 0")
        self._listener.step(Phase.PREFILL, work.rows)
        sequence = ModelSequence(self._built)
        prefill = sequence.prefill(work.ticket.tokens[: work.end], prompt_logprobs=scored)
        self._sequences[work.ticket] = sequence, PromptResult(prefill.logits, prefill.prompt_logprobs)

    def finish_prompt(self, ticket: Ticket) -> PromptResult:
        """What the prompt's pass gave, as `StepModel` says."""
        return self._sequences[ticket][1]

    def forget(self, ticket: Ticket) -> None:
        """Frees the request's keys and values."""
        kept = self._sequences.pop(ticket, None)
        if kept is not None:
            kept[0].close()

    def _rows(self, work: TicketWork) -> torch.Tensor | None:
        sequence, _ = self._sequences[work.ticket]
        logits = None
        for position in range(work.begin, work.end):
            self._listener.step(Phase.DECODE, 1)
            logits = sequence.step(work.ticket.tokens[position])
        return logits if work.completes else None


class SideBySidePasses(SequencePasses):
    """Prompts in turn, each with a cache of its own, but the rows of answers in one pass. Thread: one at a time."""

    def __init__(self, built: BuiltModel, model: SideBySide, page_count: int, listener: StepListener) -> None:
        """Computes prompts on `built` and answers on `model`."""
        super().__init__(built, page_count, listener)
        self._model = model

    @property
    def most_together(self) -> int:
        """As many as there are."""
        return sys.maxsize

    def rows(self, works: Sequence[TicketWork]) -> list[torch.Tensor | None]:
        """Computes one row of each answer, as `StepModel` says."""
        self._listener.step(Phase.DECODE, len(works))
        sequences = [self._sequences[work.ticket][0] for work in works]
        logits = self._model.step(sequences, [work.ticket.tokens[work.begin] for work in works])
        return [each if work.completes else None for each, work in zip(logits, works, strict=True)]
