"""Reads chunks of experts into slots, and compares chunks with their checksums."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zipmoe.errors import CorruptData, InvalidRequest, Unavailable, ZipMoeError
from zipmoe.store.format.checksum import xxh3
from zipmoe.store.format.layout import ALIGNMENT_BYTES, ExpertRecord
from zipmoe.store.format.manifest import Manifest
from zipmoe.store.read.read_defaults import REQUEST_BYTES
from zipmoe.store.read.record_file import RecordFile
from zipmoe.types import ExpertKey, Part


@dataclass(frozen=True)
class ReadRequest:
    """A request to the disk: `nbytes` bytes at `file_offset` of expert file number `file`.

    The bytes are at `offset` of the record. The first `e_bytes` bytes of the record are the E part, all others the SM
    part.
    """

    file: int
    file_offset: int
    offset: int
    nbytes: int
    e_bytes: int

    @property
    def end(self) -> int:
        """Offset of the byte after the last byte, relative to the record."""
        return self.offset + self.nbytes

    @property
    def e_place(self) -> slice:
        """The bytes of the E slot that the request fills."""
        return slice(min(self.offset, self.e_bytes), min(self.end, self.e_bytes))

    @property
    def sm_place(self) -> slice:
        """The bytes of the SM slot that the request fills."""
        return slice(max(self.offset - self.e_bytes, 0), max(self.end - self.e_bytes, 0))


class StoreReader:
    """The expert files of a store, open for reading.

    `buffered_reads` counts requests that went through the page cache because O_DIRECT was refused.

    Thread: every method may be called from any thread. `close` waits for the running reads.
    """

    def __init__(self, store: Path, manifest: Manifest) -> None:
        """Opens every expert file.

        Raises:
            CorruptData: a file is missing or has another size than the manifest says.
            InvalidRequest: no permission to read a file.
            ResourceExhausted: too many files are open.
        """
        self.manifest = manifest
        self.buffered_reads = 0
        self._state = threading.Condition()
        self._reads_under_way = 0
        self._closed = False
        self._files: list[RecordFile] = []
        try:
            for file in manifest.files:
                self._files.append(RecordFile(store / file.name, file.nbytes))
        except ZipMoeError:
            self.close()
            raise

    @property
    def direct(self) -> bool:
        """Whether all files are read with O_DIRECT. The value may turn false at a first read, and never true again."""
        return all(file.direct for file in self._files)

    def requests(self, key: ExpertKey, parts: Part, max_bytes: int = REQUEST_BYTES) -> list[ReadRequest]:
        """Cuts the read of some parts of an expert into requests to the disk.

        Args:
            key: the expert.
            parts: E, SM or both.
            max_bytes: the largest request, at least 4096; rounded down to a multiple of 4096.

        Returns:
            Requests in ascending order, contiguous in the file. A request may hold the end of the E part and the start
            of the SM part.

        Raises:
            NotFound: the store has no such expert.
            InvalidRequest: `parts` names no part, or `max_bytes` is too small.
        """
        if max_bytes < ALIGNMENT_BYTES:
            raise InvalidRequest(f"a request is at least {ALIGNMENT_BYTES} bytes, not {max_bytes}")
        record = self.manifest.record(key)
        begin, end = record.span(parts)
        step = max_bytes - max_bytes % ALIGNMENT_BYTES
        return [
            ReadRequest(record.file, record.offset + offset, offset, min(step, end - offset), record.e_bytes)
            for offset in range(begin, end, step)
        ]

    def read_request(self, request: ReadRequest, e_slot: memoryview, sm_slot: memoryview) -> None:
        """Reads the bytes of a request into the E slot, the SM slot or both. Chunks are not checked.

        Args:
            request: a request that `requests` has returned.
            e_slot: writable bytes of the E slot; empty if no E-chunk is read.
            sm_slot: writable bytes of the SM slot; empty if no SM-chunk is read. For O_DIRECT the addresses of both
                slots have to be multiples of 4096.

        Raises:
            CorruptData: short read or I/O error. The bytes of the request are undefined then.
            InvalidRequest: a slot is too small or not aligned.
            Unavailable: the reader has been closed.
        """
        targets = []
        for slot, place in ((e_slot, request.e_place), (sm_slot, request.sm_place)):
            if place.start < place.stop:
                if slot.nbytes < place.stop:
                    raise InvalidRequest(f"slot of {slot.nbytes} bytes is too small for a read up to byte {place.stop}")
                targets.append(slot[place])
        file = self._files[request.file]
        with self._reading():
            file.read(request.file_offset, *targets)
            if not file.direct:
                with self._state:
                    self.buffered_reads += 1

    def check(self, key: ExpertKey, parts: Part, slot: memoryview) -> None:
        """Checks the xxh3-64 of every chunk of some parts in a slot.

        Raises:
            CorruptData: a chunk has a wrong checksum. The message names the expert, the chunk, the file and the place.
            NotFound: the store has no such expert.
            InvalidRequest: `parts` names no part, or the slot is too small.

        Cost: 0.07 ms a MB; releases the GIL.
        """
        record = self.manifest.record(key)
        _, end = record.span(parts)
        if slot.nbytes < end:
            raise InvalidRequest(f"slot of {slot.nbytes} bytes is too small for {key}, which ends at byte {end}")
        for damage in damaged_chunks(record, parts, slot):
            file = self._files[record.file]
            raise CorruptData(f"{key}: {damage.describe(record)} of {file.path} has a wrong checksum{file.change()}")

    def read(self, key: ExpertKey, parts: Part, slot: memoryview) -> int:
        """Reads some parts of an expert into one buffer and checks the chunks.

        The expert store runs the same steps on several threads, with two slots.

        Args:
            key: the expert.
            parts: E, SM or both.
            slot: writable; each part is read to its offset in the record. For O_DIRECT the address has to be a multiple
                of 4096.

        Returns:
            Bytes read from disk.

        Raises:
            CorruptData, InvalidRequest, NotFound, Unavailable: as `requests`, `read_request` and `check`. The slot is
                undefined then.
        """
        requests = self.requests(key, parts)
        for request in requests:
            self.read_request(request, slot[: request.e_bytes], slot[request.e_bytes :])
        self.check(key, parts, slot)
        return sum(request.nbytes for request in requests)

    def close(self) -> None:
        """Waits for the running reads and closes the files. Later reads raise Unavailable. May be called twice."""
        with self._state:
            self._closed = True
            self._state.wait_for(lambda: self._reads_under_way == 0)
            for file in self._files:
                file.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Keeps the descriptors open during a read, because the number of a closed descriptor may be reused."""
        with self._state:
            if self._closed:
                raise Unavailable("the store reader has been closed")
            self._reads_under_way += 1
        try:
            yield
        finally:
            with self._state:
                self._reads_under_way -= 1
                self._state.notify_all()


@dataclass(frozen=True)
class ChunkDamage:
    """A chunk with bytes that do not match its checksum in the manifest."""

    tensor: int
    part: Part
    chunk: int

    def describe(self, record: ExpertRecord) -> str:
        """Names the chunk and its place in the file."""
        tensor = record.tensors[self.tensor]
        span = tensor.sm_chunk if self.part == Part.SM else tensor.e_chunks[self.chunk]
        name = "SM-chunk" if self.part == Part.SM else f"E-chunk {self.chunk}"
        return f"{name} of {tensor.spec.name} ({span.nbytes} bytes at {record.offset + span.offset})"


def damaged_chunks(record: ExpertRecord, parts: Part, slot: memoryview) -> Iterator[ChunkDamage]:
    """Compares the chunks of a record in a slot with their checksums, and yields every damaged chunk."""
    for index, tensor in enumerate(record.tensors):
        if parts & Part.E:
            for chunk, span in enumerate(tensor.e_chunks):
                if xxh3(slot[span.offset : span.end]) != span.xxh3:
                    yield ChunkDamage(index, Part.E, chunk)
        if parts & Part.SM and xxh3(slot[tensor.sm_chunk.offset : tensor.sm_chunk.end]) != tensor.sm_chunk.xxh3:
            yield ChunkDamage(index, Part.SM, 0)
