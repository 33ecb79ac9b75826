"""What the slots of the chunk arena hold, as far as one session has had them filled."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.decoder.job import RecoverJob
from services.expert_store.client import ArenaDescription
from zipmoe.errors import InvalidRequest, NotFound, StaleSlot, ZipMoeError
from zipmoe.residency.base import Read
from zipmoe.types import ExpertKey, Part, SlotRef


@dataclass(slots=True)
class ChunkSlot:
    """One use of one chunk slot.

    Attributes:
        key: the expert that is in it.
        parts: its chunks that are valid, or will be once `reading` is over.
        reading: whether the store is still reading into it.
        waiting: recoveries that begin when the read has ended.
        pin_count: recoveries that need the content, waiting ones included.
        released: whether the client is done with it; the store is told when the last pin goes.
    """

    key: ExpertKey
    parts: Part
    reading: bool = True
    waiting: list[RecoverJob] = field(default_factory=list)
    pin_count: int = 0
    released: bool = False


class ChunkSlots:
    """The chunk slots of one session, by the use that their reference names.

    A released slot keeps its bytes until the next read into it. If that read is of the same expert, it only has to
    bring the parts that are missing: that is how an expert of which E or SM alone was resident becomes complete.

    Thread: the event loop's only.
    """

    def __init__(self, arena: ArenaDescription) -> None:
        self._arena = arena
        self._slots: dict[SlotRef, ChunkSlot] = {}
        self._failed: dict[int, tuple[SlotRef, ZipMoeError]] = {}
        self._left: dict[int, tuple[ExpertKey, Part]] = {}

    def begin_read(self, read: Read) -> None:
        """Notes that the store is asked for a read.

        Raises:
            StaleSlot: the slot belongs to another arena than the one that is mapped, or has seen this very use.
            NotFound: there is no such slot.
        """
        arena, ref, slot = self._arena, read.chunk_slot, read.chunk_slot.slot
        if (ref.owner_id, ref.arena_epoch) != (arena.owner_id, arena.arena_epoch):
            raise StaleSlot(f"{ref}, epoch {ref.arena_epoch}: mapped is {arena.owner_id}, epoch {arena.arena_epoch}")
        if slot >= arena.slot_count:
            raise NotFound(f"slot {slot} of {arena.owner_id}, which has {arena.slot_count} slots")
        if ref in self._slots:
            raise StaleSlot(f"{ref} is in use by an earlier read")
        self._failed.pop(slot, None)
        left_key, left_parts = self._left.pop(slot, (None, Part.NONE))
        parts = read.parts | left_parts if left_key == read.key else read.parts
        self._slots[read.chunk_slot] = ChunkSlot(read.key, parts)

    def end_read(self, ref: SlotRef, error: ZipMoeError | None) -> list[RecoverJob]:
        """Notes that a read has ended.

        Returns:
            The recoveries that waited for it: to be started, or after an error to be failed.
        """
        chunk = self._slots.get(ref)
        if chunk is None:
            return []  # released while it was being read
        chunk.reading = False
        waiting, chunk.waiting = chunk.waiting, []
        if error is not None:
            del self._slots[ref]
            self._failed[ref.slot] = (ref, error)
        return waiting

    def complete(self, ref: SlotRef, key: ExpertKey) -> ChunkSlot:
        """Looks up a slot that holds, or will hold, all chunks of an expert.

        Raises:
            StaleSlot: this session has not read into that use of the slot, or has released it.
            InvalidRequest: the slot is for another expert, or not for all of its parts.
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
        if chunk.parts != Part.ALL:
            raise InvalidRequest(f"{ref} holds only part {chunk.parts.name} of {key}")
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
        if not chunk.reading:
            self._left[ref.slot] = (chunk.key, chunk.parts)
        return True
