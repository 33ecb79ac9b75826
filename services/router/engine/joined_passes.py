"""Passes of models without KV pages: each request has a cache of its own, and passes meet at experts and linears."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from zipmoe.errors import InternalError
from zipmoe.model.passes.joined import JoinedModel, JoinedRequest
from zipmoe.model.passes.prompt_pass import PromptResult
from zipmoe.model.passes.side_by_side import SideBySide
from zipmoe.serving.planner import TicketWork
from zipmoe.serving.ticket import PageReuse, Ticket


class JoinedPasses:
    """A `StepModel` for any model family.

    Pages exist only as a count that bounds the memory of the caches. A request has one row a step. As in
    `SharedPasses`, a step computes only some layers of its prompts.

    Thread: one at a time.
    """

    def __init__(self, model: JoinedModel, page_count: int, prefill_rows: int, *, together: bool = True) -> None:
        """Computes on `model`. With `together` False, requests never meet: each has passes of its own."""
        self._together = together
        self._model = model
        self._page_count = page_count
        self._prefill_rows = prefill_rows
        self._requests: dict[Ticket, JoinedRequest] = {}

    @property
    def page_count(self) -> int:
        """Number of pages that would take the memory of the caches."""
        return self._page_count

    @property
    def page_reuse(self) -> PageReuse:
        """Nothing: each request has a cache of its own."""
        return PageReuse.NOTHING

    @property
    def adopts_any(self) -> bool:
        """Always false."""
        return False

    @property
    def shares_pages(self) -> bool:
        """Always false."""
        return False

    @property
    def most_together(self) -> int:
        """No limit, or one where requests do not meet."""
        return sys.maxsize if self._together else 1

    def rows(self, works: Sequence[TicketWork]) -> list[list[torch.Tensor]]:
        """Computes a row of each answer in one pass; see `StepModel`."""
        tokens = [work.ticket.tokens[work.begin] for work in works]
        logits = self._step([self._requests[work.ticket] for work in works], tokens)
        return [[each] if work.completes else [] for each, work in zip(logits, works, strict=True)]

    @property
    def pages_to_prepare(self) -> int:
        """Always 0."""
        return 0

    def prepare(self, pages: Sequence[int]) -> None:
        """Prepares nothing."""

    def advance_prompts(self, works: Sequence[TicketWork], scored: Sequence[int | None]) -> list[bool]:
        """Computes some layers of prompts; see `StepModel`."""
        requests = [self._request(work, scored=each) for work, each in zip(works, scored, strict=True)]
        rows = sum(work.rows for work in works)
        layers = max(1, self._prefill_rows * self._model.layer_count // rows)
        for met in [requests] if self._together else [[each] for each in requests]:
            self._model.advance(met, layers)
        return [request.prompt is not None for request in requests]

    def finish_prompt(self, ticket: Ticket) -> PromptResult:
        """Returns the result of the prompt's pass; see `StepModel`."""
        prompt = self._requests[ticket].prompt
        assert prompt is not None
        return prompt

    def prompt_share(self, ticket: Ticket) -> float:
        """Returns the computed share of a prompt's MoE layers; see `StepModel`."""
        request = self._requests.get(ticket)
        return 0.0 if request is None else request.layers_done / self._model.layer_count

    def fork(self, ticket: Ticket, sibling: Ticket) -> None:
        """Copies the cache of the request; see `StepModel`."""
        self._requests[sibling] = self._requests[ticket].fork()

    def forget(self, ticket: Ticket) -> None:
        """Ends the pass of a request and frees its cache."""
        if (request := self._requests.pop(ticket, None)) is not None:
            request.close()

    def _request(self, work: TicketWork, *, scored: int | None) -> JoinedRequest:
        if work.begin:
            raise InternalError("a prompt without pages begins at 0")
        if work.ticket not in self._requests:
            self._requests[work.ticket] = self._model.begin(work.ticket.tokens[: work.end], scored=scored)
        return self._requests[work.ticket]

    def _step(self, requests: Sequence[JoinedRequest], token_ids: Sequence[int]) -> list[torch.Tensor]:
        return self._model.step(requests, token_ids)


class SideBySidePasses(JoinedPasses):
    """A `StepModel` for encoder-decoders: prompts are joined, answers share one call. Thread: one at a time."""

    def __init__(self, model: JoinedModel, side_by_side: SideBySide, page_count: int, prefill_rows: int) -> None:
        """Computes prompts on `model` and answers on `side_by_side`."""
        super().__init__(model, page_count, prefill_rows)
        self._side_by_side = side_by_side

    def _step(self, requests: Sequence[JoinedRequest], token_ids: Sequence[int]) -> list[torch.Tensor]:
        return self._side_by_side.step([each.sequence for each in requests], token_ids)
