"""Experts that are fetched into free slots while there is nothing else to do, so that those who come find them there.

    an expert that is      gets
    not there              both chunks where there are slots for both, else SM or E alone
    E_ONLY or SM_ONLY      the other part
    PACKED                 its tensor, while a tensor slot is free

Nobody loses anything by it. A slot counts as free as well if it holds chunks whose tensor is there: without that, where
most memory is in tensor slots, the few chunk slots through which all tensors have to come would soon be taken.
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
"""Reads, and as many recoveries, under way at a time: the disk has the next one when one ends, and a request that comes
finds hardly anything before it."""

MOST_FAILURES: Final = 4
"""So many failed operations end the filling until a decoder attaches: a store that is gone is not tried for ever."""

_CHOICES = {Part.ALL: (Part.ALL, Part.SM, Part.E), Part.SM: (Part.SM,), Part.E: (Part.E,), Part.NONE: ()}


class Fill:
    """What is left to be filled, and what of it is under way.

    Attributes:
        order: whom free slots are for, the first ones first; empty where they stay free.
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
        """Whether an operation of this has not ended."""
        return bool(self._reads or self._recoveries)

    def begin_anew(self) -> None:
        """What is there has changed: who comes next is to be looked for from the start."""
        self._is_new = True

    def joined(self) -> None:
        """A decoder has attached: what has failed may be tried again."""
        self._failed.clear()
        self.begin_anew()

    def lost(self) -> None:
        """A decoder has gone: what it was doing will not be told of any more."""
        self._reads &= self._queue.running.keys()
        self._recoveries &= self._queue.running.keys()
        self.begin_anew()

    def ended(self, operation_id: int, held: Holding, error: Exception | None) -> None:
        """An operation of whatever kind has ended, and `held` says what it has left."""
        if operation_id not in self._reads and operation_id not in self._recoveries:
            return
        self._reads.discard(operation_id)
        self._recoveries.discard(operation_id)
        if error is not None:
            self._failed.add(held.index)
        elif held.packed and not held.has_tensor:
            self._unrecovered.append(held)

    def go_on(self, operations: Operations) -> None:
        """Starts as many of the next operations as may be under way at a time."""
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
        return not (held.under_way or held.rows or held.index in self._failed)

    def _read(self, held: Holding, operations: Operations) -> bool:
        """Starts to read what an expert lacks, if it can be; returns whether it is the next one's turn."""
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
                return False  # a tensor, once it is recovered, leaves room for both parts
        return held.home is not None

    def _has_room(self, decoder: DecoderPools, parts: Part) -> bool:
        return all(self._queue.placement.has_room(pool) for pool in decoder.lacking(parts))
