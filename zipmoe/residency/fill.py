"""Fetches experts into free slots while the router is idle, so that the next request finds more experts resident.

    state of the expert    fetch
    ABSENT                 both parts if both find a slot, else SM alone, else E alone
    E_ONLY or SM_ONLY      the missing part
    PACKED                 recovery of the tensor, if a tensor slot is free

A fill never lowers the residency state of an expert. Chunk slots beside a resident tensor count as free too. Otherwise,
where most memory is in tensor slots, the few chunk slots that all tensors are recovered from would soon be occupied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from zipmoe.residency.counters import Reason
from zipmoe.residency.fetch_queue import FetchQueue
from zipmoe.residency.holding import Holding
from zipmoe.residency.pools import Operations
from zipmoe.residency.slot_pool import DecoderPools
from zipmoe.types import Part

AT_ONCE: Final = 2
"""Limit of reads under way, and likewise of recoveries. With two, the disk has the next read when one ends, and a new
request waits for hardly any earlier read."""

MOST_FAILURES: Final = 4
"""Number of experts with a failed operation that stops the fill until a decoder attaches. It ends the attempts on a
store that is gone."""

_CHOICES = {Part.ALL: (Part.ALL, Part.SM, Part.E), Part.SM: (Part.SM,), Part.E: (Part.E,), Part.NONE: ()}


class Fill:
    """Experts that are left to fill, and the fill operations under way.

    Attributes:
        order: experts to fetch into free slots, most wanted first; empty to leave slots free.
    """

    def __init__(self, queue: FetchQueue) -> None:
        self.order: Sequence[Holding] = ()
        self._queue = queue
        self._is_new = True
        self._unread: deque[Holding] = deque()
        self._unrecovered: deque[Holding] = deque()
        self._reads: set[int] = set()
        self._recoveries: set[int] = set()
        self._failed: set[int] = set()

    @property
    def under_way(self) -> bool:
        """Whether a fill operation has not ended."""
        return bool(self._reads or self._recoveries)

    def rescan(self) -> None:
        """Makes the next `start_next` search `order` from its beginning, because residency states have changed."""
        self._is_new = True

    def joined(self) -> None:
        """Permits new attempts at failed experts after a decoder has attached."""
        self._failed.clear()
        self.rescan()

    def lost(self) -> None:
        """Forgets the operations of a lost decoder, which will not be reported as completed."""
        self._reads &= self._queue.running.keys()
        self._recoveries &= self._queue.running.keys()
        self.rescan()

    def ended(self, operation_id: int, held: Holding, error: Exception | None) -> None:
        """Notes the end of an operation, whether of a fill or not.

        Args:
            operation_id: id of the operation.
            held: its expert, in the state after the operation.
            error: the operation's error; None if it succeeded.
        """
        if operation_id not in self._reads and operation_id not in self._recoveries:
            return
        self._reads.discard(operation_id)
        self._recoveries.discard(operation_id)
        if error is not None:
            self._failed.add(held.index)
        elif held.packed and not held.has_tensor:
            self._unrecovered.append(held)

    def start_next(self, operations: Operations) -> None:
        """Starts the next operations, up to `AT_ONCE` reads and `AT_ONCE` recoveries under way."""
        if len(self._failed) >= MOST_FAILURES:
            return
        if self._is_new:
            self._is_new = False
            self._unread = deque(held for held in self.order if not (held.has_tensor or held.packed))
            self._unrecovered = deque(held for held in self.order if held.packed and not held.has_tensor)
        while self._unrecovered and len(self._recoveries) < AT_ONCE:
            held = self._unrecovered.popleft()
            free = held.home is not None and held.home.tensor.free
            if free and held.packed and not held.has_tensor and self._may_start(held):
                self._recoveries.add(self._queue.promote(held, Reason.FILL, operations))
        while self._unread and len(self._reads) < AT_ONCE and self._read(self._unread[0], operations):
            self._unread.popleft()

    def _may_start(self, held: Holding) -> bool:
        return not (held.under_way or held.rows or held.unfit or held.index in self._failed)

    def _read(self, held: Holding, operations: Operations) -> bool:
        """Starts to read the missing parts of an expert if there are slots.

        Returns:
            Whether the fill goes on to the next expert; False to try this expert again later.
        """
        if not held.missing or held.has_tensor or not self._may_start(held):
            return True
        decoders = list(self._queue.decoders.values()) if held.home is None else [held.home]
        for parts in _CHOICES[held.missing]:
            able = {each.decoder_id for each in decoders if self._has_room(each, parts)}
            if able:
                self._queue.settle(held, able)
                self._reads.add(self._queue.fill(held, parts, operations))
                return True
            if self._recoveries or (self._reads and any(each.tensor.free for each in decoders)):
                return False  # a recovered tensor will make its chunk slots available, and then both parts find a slot
        return held.home is not None

    def _has_room(self, decoder: DecoderPools, parts: Part) -> bool:
        return all(self._queue.slot_assignment.has_room(pool) for pool in decoder.lacking(parts))
