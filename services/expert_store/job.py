"""Tracks the progress of one read: the requests that are left and the chunks that are complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zipmoe.errors import ZipMoeError
from zipmoe.residency.pools import Read
from zipmoe.services.expert_store.plan import ReadPlan
from zipmoe.store.format.layout import ChunkSpan
from zipmoe.store.read.reader import ReadRequest
from zipmoe.types import Part


class ReadJob:
    """A read of an expert in the I/O channel.

    Attributes:
        read: the operation: expert, parts and slots.
        holder: session of the operation.
        begin_by_s: deadline on the monotonic clock; the job does not begin from then on.
        e_slot: bytes of the slot for E-chunks, writable; empty if no E-chunks are read.
        sm_slot: likewise for SM-chunks.
        error: cause of the failure; None while there is none. The first error counts.
        bytes_read: bytes that arrived from disk, by part.
        started_s: time of the first request, in seconds of the monotonic clock; 0 before.
        ended_s: time of the end, after the last check; 0 before.

    Thread: guarded by the channel's lock until the job has ended, then owned by the receiver of the report.
    """

    __slots__ = (
        "_first_left",
        "_in_flight",
        "_missing",
        "_next",
        "_plan",
        "_unchecked",
        "begin_by_s",
        "bytes_read",
        "e_slot",
        "ended_s",
        "error",
        "holder",
        "read",
        "sm_slot",
        "started_s",
    )

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
        self.read = read
        self.holder = holder
        self.begin_by_s = begin_by_s
        self.e_slot = e_slot
        self.sm_slot = sm_slot
        self.error: ZipMoeError | None = None
        self.bytes_read = {Part.E: 0, Part.SM: 0}
        self.started_s = 0.0
        self.ended_s = 0.0
        self._plan = plan
        self._missing = list(plan.sizes)
        self._first_left = len(plan.first_tensor)
        self._unchecked = len(plan.sizes)
        self._next = 0
        self._in_flight = 0

    @property
    def request_count(self) -> int:
        """Requests of the whole read."""
        return len(self._plan.requests)

    @property
    def begun(self) -> bool:
        """Whether a request has been issued."""
        return self._next > 0

    @property
    def issued(self) -> bool:
        """Whether no request is left to issue."""
        return self._next == len(self._plan.requests)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to issue and nothing is in flight."""
        return self.issued and self._in_flight == 0

    def take(self) -> ReadRequest:
        """Issues the next request."""
        request = self._plan.requests[self._next]
        self._next += 1
        self._in_flight += 1
        return request

    def stop(self, error: ZipMoeError) -> None:
        """Fails the job with an error and drops the requests that have not been issued."""
        self.error = self.error or error
        self._next = len(self._plan.requests)

    def landed(self, request: ReadRequest) -> list[ChunkSpan]:
        """Counts the arrived bytes of a request; returns the chunks that are now complete."""
        for part, place in ((Part.E, request.e_place), (Part.SM, request.sm_place)):
            self.bytes_read[part] += place.stop - place.start
        return self._plan.landed(request, self._missing)

    def check(self, chunk: ChunkSpan) -> None:
        """Verifies the checksum of a complete chunk.

        Raises:
            CorruptData: the bytes differ from the packed bytes.
        """
        self._plan.check(chunk, self.e_slot, self.sm_slot)

    def checked(self, chunks: Sequence[ChunkSpan]) -> bool:
        """Counts chunks as valid; returns whether they complete the first tensor while other chunks are missing."""
        count = sum(chunk.offset in self._plan.first_tensor for chunk in chunks)
        self._first_left -= count
        self._unchecked -= len(chunks)
        return count > 0 and self._first_left == 0 and self._unchecked > 0 and self.error is None

    def settle(self, error: ZipMoeError | None) -> None:
        """Counts a request as over, checks included; an error fails the job."""
        self._in_flight -= 1
        if error is not None:
            self.stop(error)

    def let_go(self) -> None:
        """Drops the views of the slots, so that the arenas can be closed."""
        self.e_slot.release()
        self.sm_slot.release()


class ReadEvent(NamedTuple):
    """Report on a read: the read has `ended`, or the first tensor's chunks are valid while other chunks are not.

    Before the end the job belongs to the channel. The receiver may then access only `read` and `holder`.
    """

    job: ReadJob
    ended: bool
