"""Tracks the chunk slots of a session: reads into them, pins, releases."""

from __future__ import annotations

from zipmoe.arena.description import ArenaDescription
from zipmoe.errors import InvalidRequest, NotFound, SlotLeased, StaleSlot, ZipMoeError
from zipmoe.services.decoder.pending import ChunkSlot, ReadStage
from zipmoe.types import ExpertKey, SlotRef


class ChunkSlots:
    """The slots of a chunk arena, E or SM: the present use of each.

    Thread: the event loop's only.
    """

    def __init__(self, arena: ArenaDescription) -> None:
        self._arena = arena
        self._slots: dict[int, ChunkSlot] = {}
        self._failed: dict[int, tuple[SlotRef, ZipMoeError]] = {}

    def check_read(self, ref: SlotRef) -> None:
        """Checks whether the store may be asked to read into a slot.

        Raises:
            StaleSlot: the slot belongs to another arena than the mapped one, or an earlier read uses the reference.
            NotFound: there is no such slot.
            SlotLeased: the slot is in use under another reference.
        """
        arena = self._arena
        if (ref.owner_id, ref.arena_epoch) != (arena.owner_id, arena.arena_epoch):
            raise StaleSlot(f"{ref}, epoch {ref.arena_epoch}: mapped is {arena.owner_id}, epoch {arena.arena_epoch}")
        if ref.slot >= arena.slot_count:
            raise NotFound(f"slot {ref.slot} of {arena.owner_id}, which has {arena.slot_count} slots")
        used = self._slots.get(ref.slot)
        if used is not None and used.ref == ref:
            raise StaleSlot(f"{ref} is in use by an earlier read")
        if used is not None:
            raise SlotLeased(f"{ref}: the slot is in use under generation {used.ref.generation}")

    def begin_read(self, ref: SlotRef, key: ExpertKey) -> ChunkSlot:
        """Records a read of an expert's chunks into a slot that `check_read` has passed."""
        self._failed.pop(ref.slot, None)
        chunk = self._slots[ref.slot] = ChunkSlot(ref, key)
        return chunk

    def reach(self, chunk: ChunkSlot, stage: ReadStage, error: ZipMoeError | None) -> None:
        """Records the progress of the read into a slot. The client may have released the slot meanwhile.

        Args:
            chunk: the use of the slot.
            stage: FIRST_TENSOR, or at the end WHOLE or FAILED.
            error: error of a failed read, else None.
        """
        chunk.stage = stage
        if not chunk.reading:
            chunk.waiting = []
        if error is not None and self._is_present(chunk):
            del self._slots[chunk.ref.slot]
            self._failed[chunk.ref.slot] = (chunk.ref, error)

    def find(self, ref: SlotRef, key: ExpertKey) -> ChunkSlot:
        """Finds a slot that holds, or will hold, an expert's chunks.

        Raises:
            StaleSlot: the session has not read into a slot of that reference, or has released the slot.
            InvalidRequest: the slot is for another expert.
            ZipMoeError: error of the read, if the read into the slot has failed.
        """
        chunk = self._slots.get(ref.slot)
        if chunk is None or chunk.ref != ref or chunk.released:
            failed_ref, error = self._failed.get(ref.slot, (None, None))
            if error is not None and failed_ref == ref:
                raise error
            raise StaleSlot(f"{ref} holds nothing that this session has read and not released")
        if chunk.key != key:
            raise InvalidRequest(f"{ref} holds {chunk.key}, not {key}")
        return chunk

    def unpin(self, chunk: ChunkSlot) -> bool:
        """Removes a pin; returns whether the store is to be told now that the slot was released."""
        chunk.pin_count -= 1
        return chunk.released and self._is_present(chunk) and self._forget_unpinned(chunk)

    def release(self, ref: SlotRef) -> bool:
        """Records the client's release of a slot; returns whether the store is to be told at once.

        Raises:
            StaleSlot: the session has not read into a slot of that reference, or has released the slot.
        """
        chunk = self._slots.get(ref.slot)
        if chunk is None or chunk.ref != ref or chunk.released:
            raise StaleSlot(f"{ref} holds nothing that this session has read and not released")
        chunk.released = True
        return self._forget_unpinned(chunk)

    def _forget_unpinned(self, chunk: ChunkSlot) -> bool:
        if chunk.pin_count:
            return False
        del self._slots[chunk.ref.slot]
        return True

    def _is_present(self, chunk: ChunkSlot) -> bool:
        """Whether the use has not ended: neither by a release nor because the read has failed."""
        return self._slots.get(chunk.ref.slot) is chunk
