"""Leases on the slots of an arena: no slot is written again while a session holds or writes it (invariant 6).

The table does no I/O and has no threads. A generation names one use of a slot. The client chooses generations, and the
generation of a slot only grows:

    FREE --begin_write--> WRITING --finish_write(ok)--> HELD --release--> FREE
                             |
                             +--finish_write(not ok, or released meanwhile)--> FREE

`release` and `drop_holder` never take a slot away from the thread that writes it. They mark the slot, and the end of
the write frees it. Readers belong to the session, which releases a slot after the last reader has ended.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from itertools import groupby

from zipmoe.errors import InvalidRequest, NotFound, SlotLeased, StaleSlot
from zipmoe.types import SlotRef

MAX_GENERATION = (1 << 63) - 1


class SlotState(enum.Enum):
    """State of a slot: free, being written, or held by a session."""

    FREE = "free"
    WRITING = "writing"
    HELD = "held"


@dataclass
class _Slot:
    """One slot.

    `generation` is that of the current or last use, 0 before the first. If `released` is set, the end of the write
    frees the slot.
    """

    state: SlotState = SlotState.FREE
    generation: int = 0
    holder: str = ""
    released: bool = False

    def free(self) -> None:
        self.state, self.holder, self.released = SlotState.FREE, "", False

    def describe(self) -> str:
        text = f"{self.state.value}@{self.generation}"
        text += f" by {self.holder}" if self.holder else ""
        return text + (" released" if self.released else "")


class SlotTable:
    """Leases on the slots of one arena.

    Thread: one only (the owner's event loop). Every method either succeeds completely or raises and changes nothing.
    """

    def __init__(self, owner_id: str, epoch: int, slot_count: int) -> None:
        self._owner_id = owner_id
        self._epoch = epoch
        self._slots = [_Slot() for _ in range(slot_count)]
        self._last_generation = 0

    @property
    def first_generation(self) -> int:
        """The smallest generation that a new session may use on any slot: larger than all generations so far."""
        return self._last_generation + 1

    def begin_write(self, ref: SlotRef, holder: str) -> None:
        """Leases a free slot to a writer, on behalf of a session.

        Args:
            ref: the slot, with a generation larger than all earlier generations of the slot.
            holder: the session; it holds the slot after the write, until `release`.

        Raises:
            NotFound: there is no such slot.
            StaleSlot: another owner or epoch, or a generation that the slot has already seen.
            SlotLeased: the slot is being written or held, be it by the same session.
            InvalidRequest: the generation is above 2**63 - 1.
        """
        slot = self._writable(ref)
        slot.state, slot.generation, slot.holder = SlotState.WRITING, ref.generation, holder
        self._last_generation = max(self._last_generation, ref.generation)

    def check_write(self, ref: SlotRef) -> None:
        """Raises the errors of `begin_write` without leasing, so that a caller can lease two slots or neither."""
        self._writable(ref)

    def finish_write(self, ref: SlotRef, ok: bool) -> None:
        """Ends a write. The session holds the slot then; a failed write or a released slot is freed instead.

        Raises:
            NotFound, StaleSlot: `ref` is not being written.
        """
        slot = self._current(ref)
        if slot.state is not SlotState.WRITING:
            raise StaleSlot(f"{ref}: the slot is {slot.describe()}, not being written")
        if ok and not slot.released:
            slot.state = SlotState.HELD
        else:
            slot.free()

    def release(self, ref: SlotRef, holder: str) -> None:
        """Ends a session's lease; the slot is free at once, or when its write has ended.

        Raises:
            NotFound: the arena has no such slot.
            StaleSlot: the use of the slot that `ref` names is over, or was released before.
            SlotLeased: the slot belongs to another session.
        """
        slot = self._current(ref)
        if slot.state is SlotState.FREE or slot.released:
            raise StaleSlot(f"{ref}: the slot is {slot.describe()}")
        if slot.holder != holder:
            raise SlotLeased(f"{ref}: the slot is {slot.describe()}, not {holder}")
        slot.released = True
        self._free_if_done(slot)

    def drop_holder(self, holder: str) -> None:
        """Releases all slots of an ended session. A slot that is being written becomes free when the write ends."""
        for slot in self._slots:
            if slot.holder == holder and slot.state is not SlotState.FREE:
                slot.released = True
                self._free_if_done(slot)

    def counts(self) -> dict[str, int]:
        """Counts the slots in each state, by the names `free`, `writing` and `held`."""
        counted = Counter(slot.state for slot in self._slots)
        return {state.value: counted[state] for state in SlotState}

    def __repr__(self) -> str:
        """Writes the whole state on one line; neighbouring slots in the same state are written as a range."""
        runs = []
        for text, run in groupby(enumerate(self._slots), key=lambda item: item[1].describe()):
            indexes = [index for index, _ in run]
            span = f"{indexes[0]}" if len(indexes) == 1 else f"{indexes[0]}-{indexes[-1]}"
            runs.append(f"{span} {text}")
        return f"SlotTable({self._owner_id}, next generation {self.first_generation}: {' | '.join(runs)})"

    @staticmethod
    def _free_if_done(slot: _Slot) -> None:
        if slot.released and slot.state is SlotState.HELD:
            slot.free()

    def _slot(self, ref: SlotRef) -> _Slot:
        if ref.owner_id != self._owner_id or ref.arena_epoch != self._epoch:
            raise StaleSlot(f"{ref}, epoch {ref.arena_epoch}: this is {self._owner_id}, epoch {self._epoch}")
        if not 0 <= ref.slot < len(self._slots):
            raise NotFound(f"slot {ref.slot} of {self._owner_id}, which has {len(self._slots)} slots")
        return self._slots[ref.slot]

    def _writable(self, ref: SlotRef) -> _Slot:
        slot = self._slot(ref)
        if ref.generation > MAX_GENERATION:
            raise InvalidRequest(f"generation {ref.generation} of slot {ref.slot}, want at most {MAX_GENERATION}")
        if ref.generation <= slot.generation:
            raise StaleSlot(f"{ref}: the slot has reached generation {slot.generation}")
        if slot.state is not SlotState.FREE:
            raise SlotLeased(f"{ref}: the slot is {slot.describe()}")
        return slot

    def _current(self, ref: SlotRef) -> _Slot:
        slot = self._slot(ref)
        if ref.generation != slot.generation:
            raise StaleSlot(f"{ref}: the slot is {slot.describe()}")
        return slot
