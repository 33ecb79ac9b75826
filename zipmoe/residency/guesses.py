"""Starts speculative prefetches for later layers, and settles each prefetch when the layer's gate has chosen.

A guess is a speculative prefetch: a later layer's gate, applied to the input of the running layer's gate, predicts the
experts. An announcement does the same with the running layer's own gate, shortly before the layer needs the experts.
"""

from __future__ import annotations

from collections.abc import Iterable

from zipmoe.residency.counters import Counters, GuessOutcome, Reason
from zipmoe.residency.fetch_queue import FetchQueue
from zipmoe.residency.holding import Holding
from zipmoe.residency.pools import Operations, Read

#: Number of running reads and waiting experts at which the disk counts as busy, so that nothing is guessed. On a busy
#: disk a right guess only changes the order of reads, and a wrong guess delays needed reads.
BUSY_READS = 8


class Guesses:
    """Open guesses and announced experts of each layer, until the layer's needs are known."""

    def __init__(self, queue: FetchQueue, counters: Counters) -> None:
        self._queue = queue
        self._counters = counters
        self._open: dict[int, list[Holding]] = {}
        self._announced: dict[int, list[Holding]] = {}
        self._cancelled: set[int] = set()

    def fetch(self, layer: int, experts: Iterable[Holding], operations: Operations) -> None:
        """Prefetches experts that a layer will probably need, unless the disk is busy.

        Experts are fetched in the given order until no transient slot is left.
        """
        reads = sum(isinstance(operation, Read) for operation in self._queue.running.values())
        if reads + len(self._queue.waiting) < BUSY_READS:
            self._fetch(self._open.setdefault(layer, []), experts, operations)

    def announce(self, layer: int, experts: Iterable[Holding], operations: Operations) -> None:
        """Prefetches experts that the running layer is predicted to need, even if the disk is busy.

        These experts do not count as guesses.
        """
        self._fetch(self._announced.setdefault(layer, []), experts, operations)

    def _fetch(self, fetched: list[Holding], experts: Iterable[Holding], operations: Operations) -> None:
        for held in experts if self._queue.decoders else ():
            if held.has_tensor or held.packed or held.under_way or held.rows:
                continue
            self._queue.settle(held)
            # An arrived prefetch is spare. Prompts of one group announce one after the other, and without this limit
            # the announcement of one prompt would reuse the slots of another prompt's announced experts.
            home = held.home
            crowded = home is not None and sum(other.home is home for other in fetched) >= home.e.window
            if crowded or not self._queue.fetch(held, Reason.PREFETCH, operations):
                self._queue.remove_load(held)
                self._queue.slot_assignment.leave_home(held)
                break
            fetched.append(held)

    def settle(self, layer: int, operations: Operations, *, keep: bool) -> None:
        """Settles the prefetches of a layer once the needed experts are known.

        Counts each guess by its outcome, and cancels the reads of wrong prefetches that are under way.

        Args:
            layer: the layer.
            operations: receives the cancels.
            keep: whether rightly prefetched experts keep their slots like other needed experts, instead of being
                transient.
        """
        if not (self._open or self._announced):
            return
        for held in self._open.pop(layer, ()):
            if held.rows:
                self._counters.guesses[GuessOutcome.LATE if held.under_way else GuessOutcome.USED] += 1
            else:
                self._counters.guesses[GuessOutcome.WASTED] += 1
            self._settle(held, operations, keep=keep)
        for held in self._announced.pop(layer, ()):
            self._settle(held, operations, keep=keep)

    def _settle(self, held: Holding, operations: Operations, *, keep: bool) -> None:
        if held.rows:
            if keep and held.home is not None:
                held.home.e.make_ordinary(held.index)
                held.home.sm.make_ordinary(held.index)
        elif held.read_id and held.read_id not in self._cancelled:
            operations.cancels.append(held.read_id)
            self._cancelled.add(held.read_id)

    def lost(self) -> None:
        """Forgets the cancelled reads of a lost decoder, which will not be reported as completed."""
        self._cancelled &= self._queue.running.keys()

    def is_cancelled(self, operation_id: int) -> bool:
        """Tells whether an operation under way was cancelled, so that its read may or may not take place."""
        return operation_id in self._cancelled

    def was_cancelled(self, operation_id: int) -> bool:
        """Tells whether an operation that has ended was cancelled, and forgets the operation."""
        if operation_id not in self._cancelled:
            return False
        self._cancelled.remove(operation_id)
        return True
