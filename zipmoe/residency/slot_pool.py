"""The slots of one pool: which are free, which may be reused, and which go first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from zipmoe.errors import InvalidRequest
from zipmoe.residency.pools import DecoderSlots, Grid, Pool, PoolSlots
from zipmoe.types import Part, SlotRef

_new_tuple = tuple.__new__


class SlotPool:
    """Slots of one kind at one decoder; experts are named by their index in score arrays.

    Attributes:
        kind: what the slots hold.
        free: slots that hold nothing.
        evictable: bool, shape (experts,): whose slot holds valid content that nobody uses, writes or waits for.
        transient: experts that were not admitted, but served from a slot all the same; at most `window` at once.
        spare: experts whose slot is reused before any other as soon as it is evictable, in the order of reuse:
            transient ones, and chunks whose tensor is there as well.
        victims: whom the policy would lose next, last one first.
        ranked_for: the event for which that holds.
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
        # As SlotRef(...) does, in half the time.
        return _new_tuple(SlotRef, (*self._owner, self.free.pop(), self._generation - 1))

    def vacate(self, index: int, ref: SlotRef) -> None:
        """Makes an expert's slot free."""
        self.free.append(ref.slot)
        self.evictable[index] = False
        if self.spare:
            self.keep(index)

    def keep(self, index: int) -> None:
        """Makes an expert an ordinary holder of its slot."""
        self.spare.pop(index, None)
        self.transient.discard(index)

    def next_spare(self) -> int | None:
        """The first expert whose slot is to be reused before any other, if one can be."""
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
        """The pools in which an expert without these chunks has no slot."""
        return self._lacking[missing]

    def __iter__(self) -> Iterator[SlotPool]:
        return iter((self.e, self.sm, self.tensor))
