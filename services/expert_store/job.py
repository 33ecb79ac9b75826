"""One read of one expert: which of its requests are left, and which of its chunks are complete."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from zipmoe.errors import CorruptData, ZipMoeError
from zipmoe.residency.base import Read
from zipmoe.store.checksum import xxh3
from zipmoe.store.layout import ChunkSpan, ExpertRecord
from zipmoe.store.reader import ChunkDamage, ReadRequest
from zipmoe.types import Part


class ReadJob:
    """One read of one expert on its way through the channel.

    Attributes:
        read: what is read, into which slot.
        holder: the session that wants it.
        error: why it failed; None so far, and in the end if it did not. The first error counts.
        bytes_read: bytes that arrived from disk.
        started_s: when its first request was issued, in seconds of the monotonic clock; 0 before.
        ended_s: when its last chunk was checked; 0 before.

    Thread: guarded by the channel's lock until it has ended, then owned by whoever received it.
    """

    __slots__ = (
        "_chunks",
        "_ends",
        "_in_flight",
        "_missing",
        "_next",
        "_record",
        "_requests",
        "_slot",
        "bytes_read",
        "ended_s",
        "error",
        "holder",
        "read",
        "started_s",
    )

    def __init__(
        self, read: Read, holder: str, record: ExpertRecord, requests: Sequence[ReadRequest], slot: memoryview
    ) -> None:
        self.read = read
        self.holder = holder
        self.error: ZipMoeError | None = None
        self.bytes_read = 0
        self.started_s = 0.0
        self.ended_s = 0.0
        self._record = record
        self._requests = requests
        self._slot = slot
        self._chunks = tuple(record.chunks(read.parts))
        self._ends = [chunk.end for chunk in self._chunks]
        self._missing = [chunk.nbytes for chunk in self._chunks]
        self._next = 0
        self._in_flight = 0

    @property
    def slot(self) -> memoryview:
        """The slot's bytes, writable."""
        return self._slot

    @property
    def request_count(self) -> int:
        """Requests of the whole read."""
        return len(self._requests)

    @property
    def issued(self) -> bool:
        """Whether no request is left to issue."""
        return self._next == len(self._requests)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to issue and nothing is in flight."""
        return self.issued and self._in_flight == 0

    def take(self) -> ReadRequest:
        """Issues the next request."""
        request = self._requests[self._next]
        self._next += 1
        self._in_flight += 1
        return request

    def stop(self, error: ZipMoeError) -> None:
        """Gives up: what has not been issued never will be."""
        self.error = self.error or error
        self._next = len(self._requests)

    def landed(self, request: ReadRequest) -> list[ChunkSpan]:
        """Notes the bytes of a request as arrived; returns the chunks that are complete by them."""
        self.bytes_read += request.nbytes
        begin, end = request.slot_offset, request.slot_offset + request.nbytes
        complete: list[ChunkSpan] = []
        for index in range(bisect_right(self._ends, begin), len(self._chunks)):
            chunk = self._chunks[index]
            if chunk.offset >= end:
                break
            self._missing[index] -= min(end, chunk.end) - max(begin, chunk.offset)
            if self._missing[index] == 0:
                complete.append(chunk)
        return complete

    def check(self, chunk: ChunkSpan) -> None:
        """Checks the bytes of a chunk that is complete.

        Raises:
            CorruptData: they are not what was packed.
        """
        if xxh3(self._slot[chunk.offset : chunk.end]) != chunk.xxh3:
            raise CorruptData(f"{self.read.key}: {self._describe(chunk)} has a wrong checksum")

    def settle(self, error: ZipMoeError | None) -> None:
        """Notes a request, its checks included, as over."""
        self._in_flight -= 1
        if error is not None:
            self.stop(error)

    def let_go(self) -> None:
        """Drops the view of the slot, so that the arena can be closed."""
        if self.error is not None:
            # The frames of a traceback hold slices of the slot.
            self.error.__traceback__ = self.error.__cause__ = self.error.__context__ = None
        self._slot.release()

    def _describe(self, chunk: ChunkSpan) -> str:
        for index, tensor in enumerate(self._record.tensors):
            if chunk is tensor.sm_chunk:
                return ChunkDamage(index, Part.SM, 0).describe(self._record)
            if chunk in tensor.e_chunks:
                return ChunkDamage(index, Part.E, tensor.e_chunks.index(chunk)).describe(self._record)
        raise AssertionError("a chunk of another record")
