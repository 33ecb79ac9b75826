"""The leases of an arena as they should be, beside which a test holds a real `SlotTable`."""

from __future__ import annotations

from dataclasses import dataclass

from zipmoe.types import SlotRef


@dataclass
class Lease:
    """What a slot that is not free is used for."""

    ref: SlotRef
    holder: str
    writing: bool = True
    released: bool = False


class Leases:
    """The leases on the slots of an arena; None is a free slot."""

    def __init__(self, slot_count: int) -> None:
        self._of: list[Lease | None] = [None] * slot_count
        self._generations = [0] * slot_count

    @property
    def last_generation(self) -> int:
        return max(self._generations)

    def leased(self) -> set[int]:
        return {slot for slot, lease in enumerate(self._of) if lease is not None}

    def may_write(self, ref: SlotRef) -> bool:
        return self._of[ref.slot] is None and ref.generation > self._generations[ref.slot]

    def begin_write(self, ref: SlotRef, holder: str) -> None:
        self._of[ref.slot], self._generations[ref.slot] = Lease(ref, holder), ref.generation

    def finish_write(self, ref: SlotRef, *, ok: bool) -> None:
        lease = self._of[ref.slot]
        assert lease is not None and lease.ref == ref and lease.writing
        lease.writing = False
        if not ok or lease.released:
            self._of[ref.slot] = None

    def release(self, ref: SlotRef) -> bool:
        """Returns whether there was anything to release."""
        lease = self._of[ref.slot]
        if lease is None or lease.ref != ref or lease.released:
            return False
        lease.released = True
        if not lease.writing:
            self._of[ref.slot] = None
        return True

    def drop_holder(self, holder: str) -> None:
        for lease in self._of:
            if lease is not None and lease.holder == holder:
                self.release(lease.ref)

    def counts(self) -> dict[str, int]:
        leased = [lease for lease in self._of if lease is not None]
        writing = sum(lease.writing for lease in leased)
        return {"free": self._of.count(None), "writing": writing, "held": len(leased) - writing}
