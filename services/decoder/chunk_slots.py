"""Tracks the chunk slots of a session: reads into them, pins, releases."""

from __future__ import annotations

from zipmoe.errors import InvalidRequest, NotFound, StaleSlot, ZipMoeError
from zipmoe.services.decoder.pending import ChunkSlot, PendingRecovery, ReadStage
from zipmoe.services.expert_store.client import ArenaDescription
from zipmoe.types import ExpertKey, SlotRef


class ChunkSlots:
    """The slots of a chunk arena, E or SM, by slot reference: each reference names one use of a slot.

    Thread: the event loop's only.
    """

    def __init__(self, arena: ArenaDescription) -> None:
        self._arena = arena
        self._slots: dict[SlotRef, ChunkSlot] = {}
        self._failed: dict[int, tuple[SlotRef, ZipMoeError]] = {}

    def check_read(self, ref: SlotRef) -> None:
        """Checks whether the store may be asked to read into a slot.

        Raises:
            StaleSlot: the slot belongs to another arena than the mapped one, or an earlier read uses the reference.
            NotFound: there is no such slot.
        """
        arena = self._arena
        if (ref.owner_id, ref.arena_epoch) != (arena.owner_id, arena.arena_epoch):
            raise StaleSlot(f"{ref}, epoch {ref.arena_epoch}: mapped is {arena.owner_id}, epoch {arena.arena_epoch}")
        if ref.slot >= arena.slot_count:
            raise NotFound(f"slot {ref.slot} of {arena.owner_id}, which has {arena.slot_count} slots")
        if ref in self._slots:
            raise StaleSlot(f"{ref} is in use by an earlier read")

    def begin_read(self, ref: SlotRef, key: ExpertKey) -> None:
        """Records a read of an expert's chunks into a slot that `check_read` has passed."""
        self._failed.pop(ref.slot, None)
        self._slots[ref] = ChunkSlot(key)

    def reach(self, ref: SlotRef, stage: ReadStage, error: ZipMoeError | None) -> list[PendingRecovery]:
        """Records the progress of the read into a slot.

        Args:
            ref: the slot.
            stage: FIRST_TENSOR, or at the end WHOLE or FAILED.
            error: error of a failed read, else None.

        Returns:
            The recoveries that wait for the read.
        """
        chunk = self._slots.get(ref)
        if chunk is None:
            return []  # released during the read
        chunk.stage = stage
        waiting = chunk.waiting
        if not chunk.reading:
            chunk.waiting = []
        if error is not None:
            del self._slots[ref]
            self._failed[ref.slot] = (ref, error)
        return waiting

    def find(self, ref: SlotRef, key: ExpertKey) -> ChunkSlot:
        """Finds a slot that holds, or will hold, an expert's chunks.

        Raises:
            StaleSlot: the session has not read into a slot of that reference, or has released the slot.
            InvalidRequest: the slot is for another expert.
            ZipMoeError: error of the read, if the read into the slot has failed.
        """
        chunk = self._slots.get(ref)
        if chunk is None or chunk.released:
            failed_ref, error = self._failed.get(ref.slot, (None, None))
            if error is not None and failed_ref == ref:
                raise error
            raise StaleSlot(f"{ref} holds nothing that this session has read and not released")
        if chunk.key != key:
            raise InvalidRequest(f"{ref} holds {chunk.key}, not {key}")
        return chunk

    def unpin(self, ref: SlotRef) -> bool:
        """Removes a pin; returns whether the store is to be told now that the slot was released."""
        chunk = self._slots.get(ref)
        if chunk is None:
            return False  # the read has failed
        chunk.pin_count -= 1
        return chunk.released and self._forget_unpinned(ref, chunk)

    def release(self, ref: SlotRef) -> bool:
        """Records the client's release of a slot; returns whether the store is to be told at once.

        Raises:
            StaleSlot: the session has not read into a slot of that reference, or has released the slot.
        """
        chunk = self._slots.get(ref)
        if chunk is None or chunk.released:
            raise StaleSlot(f"{ref} holds nothing that this session has read and not released")
        chunk.released = True
        return self._forget_unpinned(ref, chunk)

    def _forget_unpinned(self, ref: SlotRef, chunk: ChunkSlot) -> bool:
        if chunk.pin_count:
            return False
        del self._slots[ref]
        return True
