"""Experts that were fetched because a layer will probably need them, and what became of that."""

from __future__ import annotations

from collections.abc import Iterable

from zipmoe.residency.counters import Counters, Guess, Reason
from zipmoe.residency.fetch_queue import FetchQueue
from zipmoe.residency.holding import Holding
from zipmoe.residency.pools import Operations, Read

#: With so many reads under way the disk has enough to do: what is guessed now would only be read in another order, and
#: what is guessed wrongly at the cost of what is needed.
BUSY_READS = 8


class Guesses:
    """Guesses that have neither come true nor been proven wrong, and what a layer has announced before it needs it."""

    def __init__(self, queue: FetchQueue, counters: Counters) -> None:
        self._queue = queue
        self._counters = counters
        self._open: dict[int, list[Holding]] = {}
        self._announced: dict[int, list[Holding]] = {}
        self._cancelled: set[int] = set()

    def fetch(self, layer: int, experts: Iterable[Holding], operations: Operations) -> None:
        """Reads what is missing of experts that a layer will probably need, if the disk has little else to do.

        Until there is no transient slot left.
        """
        reads = sum(isinstance(operation, Read) for operation in self._queue.running.values())
        if reads + len(self._queue.waiting) < BUSY_READS:
            self._fetch(self._open.setdefault(layer, []), experts, operations)

    def announce(self, layer: int, experts: Iterable[Holding], operations: Operations) -> None:
        """The same of experts that the running step is about to need: they count as no guesses."""
        self._fetch(self._announced.setdefault(layer, []), experts, operations)

    def _fetch(self, fetched: list[Holding], experts: Iterable[Holding], operations: Operations) -> None:
        for held in experts if self._queue.decoders else ():
            if held.has_tensor or held.packed or held.under_way or held.rows:
                continue
            self._queue.settle(held)
            # Prompts that go together announce one after the other: none takes what another one has announced.
            home = held.home
            crowded = home is not None and sum(other.home is home for other in fetched) >= home.e.window
            if crowded or not self._queue.fetch(held, Reason.PREFETCH, operations):
                self._queue.ended(held)
                self._queue.placement.leave_home(held)
                break
            fetched.append(held)

    def settle(self, layer: int, operations: Operations, *, keep: bool) -> None:
        """A layer has told what it needs. What is still under way of the wrong guesses is cancelled.

        Args:
            layer: the layer.
            operations: where cancels go.
            keep: whether experts that were guessed rightly stay for good, as any other that a decode step needs.
        """
        if not (self._open or self._announced):
            return
        for held in self._open.pop(layer, ()):
            if held.rows:
                self._counters.guesses[Guess.LATE if held.under_way else Guess.USED] += 1
            else:
                self._counters.guesses[Guess.WASTED] += 1
            self._settle(held, operations, keep=keep)
        for held in self._announced.pop(layer, ()):
            self._settle(held, operations, keep=keep)

    def _settle(self, held: Holding, operations: Operations, *, keep: bool) -> None:
        if held.rows:
            if keep and held.home is not None:
                held.home.e.keep(held.index)
                held.home.sm.keep(held.index)
        elif held.read_id and held.read_id not in self._cancelled:
            operations.cancels.append(held.read_id)
            self._cancelled.add(held.read_id)

    def lost(self) -> None:
        """A decoder has gone: what it was reading will not be told of any more."""
        self._cancelled &= self._queue.running.keys()

    def is_cancelled(self, operation_id: int) -> bool:
        """Whether an operation under way was cancelled: how it ends, and so what it writes, is open."""
        return operation_id in self._cancelled

    def was_cancelled(self, operation_id: int) -> bool:
        """Whether an operation that has ended had been cancelled; asked once."""
        if operation_id not in self._cancelled:
            return False
        self._cancelled.remove(operation_id)
        return True
