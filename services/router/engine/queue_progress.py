"""Tells requests how far they are until their answer starts: place in the queue, computed part of the prompt."""

from __future__ import annotations

from collections.abc import Iterable

from zipmoe.services.router.engine.generation import Generation
from zipmoe.services.router.engine.passes import StepModel
from zipmoe.services.router.engine.request import RequestProgress
from zipmoe.serving.planner import StepPlanner


class QueueProgress:
    """Emits a `RequestProgress` for each request that asks for it, whenever a number has changed.

    Thread: one at a time, with the lock of the planner.
    """

    def __init__(self, planner: StepPlanner) -> None:
        """Takes the planner whose waiting requests are the queue."""
        self._planner = planner

    def submitted(self, generation: Generation) -> None:
        """Tells a request that has just been queued."""
        if generation.request.wants_progress:
            self._emit(generation, 0)

    def tell(self, generations: Iterable[Generation], model: StepModel) -> None:
        """Tells the requests that have not started. Thread: the model thread."""
        for generation in generations:
            if generation.request.wants_progress and not generation.has_begun:
                ticket = generation.ticket
                left = ticket.prompt_tokens - ticket.computed
                self._emit(generation, ticket.computed + int(left * model.prompt_share(ticket)))

    def _emit(self, generation: Generation, done: int) -> None:
        waiting, ticket = self._planner.waiting, generation.ticket
        place = waiting.index(ticket) + 1 if ticket in waiting else 0
        progress = RequestProgress(place, done, ticket.prompt_tokens)
        if progress != generation.progress:
            generation.progress = progress
            generation.request.emit(progress)
