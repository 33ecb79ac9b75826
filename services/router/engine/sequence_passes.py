"""Passes of models without KV pages: each request has a KV cache of its own, and prompts never share a pass."""

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
from zipmoe.services.router.engine.passes import StepExperts
from zipmoe.serving.planner import TicketWork
from zipmoe.serving.ticket import Ticket


class SequencePasses:
    """A `StepModel` for any model family.

    Pages exist only as a count that bounds the memory of the caches.

    Thread: one at a time.
    """

    def __init__(self, built: BuiltModel, page_count: int, experts: StepExperts) -> None:
        """Computes on `built` and tells `experts` of every pass before it begins."""
        self._built = built
        self._page_count = page_count
        self._experts = experts
        self._sequences: dict[Ticket, tuple[ModelSequence, PromptResult]] = {}

    @property
    def page_count(self) -> int:
        """Number of pages that would take the memory of the caches."""
        return self._page_count

    @property
    def reuses_pages(self) -> bool:
        """Always false."""
        return False

    @property
    def most_together(self) -> int:
        """One: every answer has a pass of its own."""
        return 1

    def rows(self, works: Sequence[TicketWork]) -> list[torch.Tensor | None]:
        """Computes rows of answers, each in a pass of its own; see `StepModel`."""
        return [self._rows(work) for work in works]

    def advance_prompts(self, works: Sequence[TicketWork], scored: Sequence[bool]) -> list[bool]:
        """Computes whole prompts, each in a pass of its own; see `StepModel`."""
        for work, each in zip(works, scored, strict=True):
            self._prompt(work, scored=each)
        return [True] * len(works)

    def _prompt(self, work: TicketWork, *, scored: bool) -> None:
        if work.begin:
            raise InternalError("a prompt that is computed in turn begins at 0")
        self._experts.step(Phase.PREFILL, work.rows)
        sequence = ModelSequence(self._built)
        self._sequences[work.ticket] = (
            sequence,
            sequence.prefill(work.ticket.tokens[: work.end], prompt_logprobs=scored),
        )

    def finish_prompt(self, ticket: Ticket) -> PromptResult:
        """Returns the result of the prompt's pass; see `StepModel`."""
        return self._sequences[ticket][1]

    def forget(self, ticket: Ticket) -> None:
        """Frees the keys and values of a request."""
        kept = self._sequences.pop(ticket, None)
        if kept is not None:
            kept[0].close()

    def _rows(self, work: TicketWork) -> torch.Tensor | None:
        sequence, _ = self._sequences[work.ticket]
        logits = None
        for position in range(work.begin, work.end):
            self._experts.step(Phase.DECODE, 1)
            logits = sequence.step(work.ticket.tokens[position])
        return logits if work.completes else None


class SideBySidePasses(SequencePasses):
    """A `StepModel` for encoder-decoders: a pass for each prompt, one pass for all answers. Thread: one at a time."""

    def __init__(self, built: BuiltModel, model: SideBySide, page_count: int, experts: StepExperts) -> None:
        """Computes prompts on `built` and answers on `model`."""
        super().__init__(built, page_count, experts)
        self._model = model

    @property
    def most_together(self) -> int:
        """No limit."""
        return sys.maxsize

    def rows(self, works: Sequence[TicketWork]) -> list[torch.Tensor | None]:
        """Computes a row of each answer in one pass; see `StepModel`."""
        self._experts.step(Phase.DECODE, len(works))
        sequences = [self._sequences[work.ticket][0] for work in works]
        logits = self._model.step(sequences, [work.ticket.tokens[work.begin] for work in works])
        return [each if work.completes else None for each, work in zip(logits, works, strict=True)]
