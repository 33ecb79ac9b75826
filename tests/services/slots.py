"""Pairs of arenas for tests, as the expert store has them."""

from __future__ import annotations

from zipmoe.arena.arena import Arena
from zipmoe.residency.pools import Pool, Read, Release, Urgency
from zipmoe.store.format.layout import ExpertRecord
from zipmoe.store.format.manifest import Manifest
from zipmoe.types import ExpertKey, Part, SlotRef

E_OWNER = "expert-store/e"
SM_OWNER = "expert-store/sm"


class ChunkArenas:
    """An arena of E-chunks and one of SM-chunks with as many slots."""

    def __init__(self, manifest: Manifest, slot_count: int) -> None:
        self.e = Arena.create(E_OWNER, manifest.max_e_bytes, slot_count, lock=False)
        self.sm = Arena.create(SM_OWNER, manifest.max_sm_bytes, slot_count, lock=False)

    def close(self) -> None:
        self.e.close()
        self.sm.close()

    def e_ref(self, slot: int, generation: int = 1) -> SlotRef:
        return SlotRef(E_OWNER, self.e.epoch, slot, generation)

    def sm_ref(self, slot: int, generation: int = 1) -> SlotRef:
        return SlotRef(SM_OWNER, self.sm.epoch, slot, generation)

    def read(
        self,
        operation_id: int,
        key: ExpertKey,
        slot: int,
        generation: int = 1,
        *,
        parts: Part = Part.ALL,
        urgency: Urgency = Urgency.NEEDED,
    ) -> Read:
        """A read into the slots with the same index in each arena."""
        e_slot = self.e_ref(slot, generation) if parts & Part.E else None
        sm_slot = self.sm_ref(slot, generation) if parts & Part.SM else None
        return Read(operation_id, key, parts, e_slot, sm_slot, urgency)

    def releases(self, slot: int, generation: int = 1) -> list[Release]:
        """Gives both slots of an index back."""
        return [Release(Pool.E, self.e_ref(slot, generation)), Release(Pool.SM, self.sm_ref(slot, generation))]

    def content(self, slot: int, record: ExpertRecord) -> bytes:
        """What the slots of an index hold, put together as a record is."""
        with self.e.slot(slot) as e_slot, self.sm.slot(slot) as sm_slot:
            return bytes(e_slot[: record.e_bytes]) + bytes(sm_slot[: record.nbytes - record.e_bytes])

    def fill(self, slot: int, byte: int) -> None:
        """Overwrites both slots of an index."""
        for arena in (self.e, self.sm):
            with arena.slot(slot) as view:
                view[:] = bytes([byte]) * len(view)
