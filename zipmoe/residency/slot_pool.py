"""State of a pool's slots: free, evictable, spare and transient."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from zipmoe.errors import InvalidRequest
from zipmoe.residency.pools import DecoderSlots, Grid, Pool, PoolSlots
from zipmoe.types import Part, SlotRef

_new_tuple = tuple.__new__


class SlotPool:
    """Slots of a pool at one decoder. Experts are identified by their index in score arrays.

    Attributes:
        kind: kind of the slots.
        slot_count: number of slots.
        window: most transient experts at once: the requested number, but at most half of the slots and at least 1.
        free: indices of the free slots.
        evictable: bool, shape (experts,): true if the expert's slot has valid content that is neither in use, being
            changed nor awaited.
        transient: experts that were given a slot without being admitted by the policy, at most `window`.
        spare: experts with slots that are reused before all others once they are evictable, in the order of reuse.
            These are the transient experts, and experts with chunks here beside a resident tensor.
        victims: the policy's next victims, the first victim last.
        ranked_for: number of the event for which `victims` was ranked.
    """

    def __init__(self, slots: PoolSlots, size: int, window: int) -> None:
        self.kind = slots.pool
        self.slot_count = slots.slot_count
        self.window = max(1, min(window, slots.slot_count // 2))
        self.free = list(range(slots.slot_count - 1, -1, -1))
        self.evictable: NDArray[np.bool_] = np.zeros(size, bool)
        self.transient: set[int] = set()
        self.spare: dict[int, None] = {}
        self.victims: list[int] = []
        self.ranked_for = 0
        self._owner = (slots.owner_id, slots.arena_epoch)
        self._generation = slots.first_generation

    def assign(self) -> SlotRef:
        """Takes a free slot, under a new generation."""
        self._generation += 1
        # Same result as SlotRef(...) in half the time.
        return _new_tuple(SlotRef, (*self._owner, self.free.pop(), self._generation - 1))

    def vacate(self, index: int, ref: SlotRef) -> None:
        """Frees the slot of an expert."""
        self.free.append(ref.slot)
        self.evictable[index] = False
        if self.spare:
            self.make_ordinary(index)

    def make_ordinary(self, index: int) -> None:
        """Lets an expert keep its slot: it is no longer spare or transient."""
        self.spare.pop(index, None)
        self.transient.discard(index)

    def next_spare(self) -> int | None:
        """Returns the first spare expert with an evictable slot; None if there is none."""
        return next((index for index in self.spare if self.evictable[index]), None)


class DecoderPools:
    """The three pools of one decoder."""

    def __init__(self, slots: DecoderSlots, grid: Grid, window: int) -> None:
        """Starts with all slots free.

        Raises:
            InvalidRequest: a pool is missing or comes twice, or there is no slot for chunks.
        """
        pools = {each.pool: SlotPool(each, grid.size, window) for each in slots.pools}
        if len(slots.pools) != len(Pool) or len(pools) != len(Pool):
            raise InvalidRequest(f"decoder {slots.decoder_id} has to bring each of the three pools once")
        self.decoder_id = slots.decoder_id
        self.e, self.sm, self.tensor = pools[Pool.E], pools[Pool.SM], pools[Pool.TENSOR]
        if not (self.e.slot_count and self.sm.slot_count):
            raise InvalidRequest(f"decoder {slots.decoder_id} has no slot for E-chunks or none for SM-chunks")
        self._lacking = ((), (self.e,), (self.sm,), (self.e, self.sm))

    def lacking(self, missing: Part) -> tuple[SlotPool, ...]:
        """Returns the chunk pools in which an expert that misses these parts has no slot."""
        return self._lacking[missing]

    def __iter__(self) -> Iterator[SlotPool]:
        return iter((self.e, self.sm, self.tensor))
