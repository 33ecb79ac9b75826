"""What the slots of one chunk arena hold, as far as one session has had them filled."""

from __future__ import annotations

from zipmoe.errors import InvalidRequest, NotFound, StaleSlot, ZipMoeError
from zipmoe.services.decoder.pending import ChunkSlot, PendingRecovery, ReadStage
from zipmoe.services.expert_store.client import ArenaDescription
from zipmoe.types import ExpertKey, SlotRef


class ChunkSlots:
    """The slots of one chunk arena, E or SM, by the use that their reference names.

    Thread: the event loop's only.
    """

    def __init__(self, arena: ArenaDescription) -> None:
        self._arena = arena
        self._slots: dict[SlotRef, ChunkSlot] = {}
        self._failed: dict[int, tuple[SlotRef, ZipMoeError]] = {}

    def check_read(self, ref: SlotRef) -> None:
        """Judges whether the store may be asked to read into a slot.

        Raises:
            StaleSlot: the slot belongs to another arena than the one that is mapped, or has seen this very use.
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
        """Notes that the store is asked to read an expert's chunks into a slot that `check_read` has passed."""
        self._failed.pop(ref.slot, None)
        self._slots[ref] = ChunkSlot(key)

    def reach(self, ref: SlotRef, stage: ReadStage, error: ZipMoeError | None) -> list[PendingRecovery]:
        """Notes how far the read into a slot has come.

        Args:
            ref: the slot.
            stage: FIRST_TENSOR, or one of the two ends.
            error: why the read has failed, if it has.

        Returns:
            The recoveries that wait for it.
        """
        chunk = self._slots.get(ref)
        if chunk is None:
            return []  # released while it was being read
        chunk.stage = stage
        waiting = chunk.waiting
        if not chunk.reading:
            chunk.waiting = []
        if error is not None:
            del self._slots[ref]
            self._failed[ref.slot] = (ref, error)
        return waiting

    def find(self, ref: SlotRef, key: ExpertKey) -> ChunkSlot:
        """Looks up a slot that holds, or will hold, an expert's chunks.

        Raises:
            StaleSlot: this session has not read into that use of the slot, or has released it.
            InvalidRequest: the slot is for another expert.
            ZipMoeError: the read into it has failed; the read's own error.
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
        """Takes back one pin; returns whether the store is to be told now that the slot was released."""
        chunk = self._slots.get(ref)
        if chunk is None:
            return False  # its read has failed
        chunk.pin_count -= 1
        return chunk.released and self._forget_unpinned(ref, chunk)

    def release(self, ref: SlotRef) -> bool:
        """Notes that the client is done with a slot; returns whether the store is to be told at once.

        Raises:
            StaleSlot: this session has not read into that use of the slot, or has released it.
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
