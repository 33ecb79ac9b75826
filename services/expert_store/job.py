"""Tracks the progress of one read: the requests that are left and the chunks that are complete."""

from __future__ import annotations

from collections.abc import Sequence

from zipmoe.process.job import PooledJob
from zipmoe.residency.pools import Read
from zipmoe.services.expert_store.plan import ReadPlan
from zipmoe.store.format.layout import ChunkSpan
from zipmoe.store.read.reader import ReadRequest
from zipmoe.types import Part


class ReadJob(PooledJob[ReadRequest]):
    """A read of an expert in the store's I/O threads; a unit is one request to the disk, a part one chunk.

    Attributes:
        read: the operation: expert, parts and slots.
        holder: session of the operation.
        e_slot: bytes of the slot for E-chunks, writable; empty if no E-chunks are read.
        sm_slot: likewise for SM-chunks.
        bytes_read: bytes that arrived from disk, by part.
    """

    __slots__ = ("_first_left", "_missing", "_plan", "_unchecked", "bytes_read", "e_slot", "holder", "read", "sm_slot")

    def __init__(
        self,
        read: Read,
        holder: str,
        plan: ReadPlan,
        e_slot: memoryview,
        sm_slot: memoryview,
        *,
        begin_by_s: float,
    ) -> None:
        super().__init__(read, plan.requests, len(plan.requests), begin_by_s)
        self.read = read
        self.holder = holder
        self.e_slot = e_slot
        self.sm_slot = sm_slot
        self.bytes_read = {Part.E: 0, Part.SM: 0}
        self._plan = plan
        self._missing = list(plan.sizes)
        self._first_left = len(plan.first_tensor)
        self._unchecked = len(plan.sizes)

    @property
    def title(self) -> str:
        """What the job does, for messages."""
        return f"the read of {self.read.key}"

    @property
    def begun(self) -> bool:
        """Whether a request has been issued."""
        return self._next > 0

    def done(self, unit: ReadRequest) -> list[ChunkSpan]:
        """Counts the arrived bytes of a request; returns the chunks that are now complete."""
        for part, place in ((Part.E, unit.e_place), (Part.SM, unit.sm_place)):
            self.bytes_read[part] += place.stop - place.start
        return self._plan.landed(unit, self._missing)

    def check(self, part: ChunkSpan) -> None:
        """Verifies the checksum of a complete chunk.

        Raises:
            CorruptData: the bytes differ from the packed bytes.
        """
        self._plan.check(part, self.e_slot, self.sm_slot)

    def checked(self, parts: Sequence[ChunkSpan]) -> bool:
        """Counts chunks as valid; returns whether they complete the first tensor while other chunks are missing."""
        count = sum(chunk.offset in self._plan.first_tensor for chunk in parts)
        self._first_left -= count
        self._unchecked -= len(parts)
        return count > 0 and self._first_left == 0 and self._unchecked > 0 and self.error is None

    def let_go(self) -> None:
        """Drops the views of the slots, so that the arenas can be closed."""
        self.e_slot.release()
        self.sm_slot.release()
