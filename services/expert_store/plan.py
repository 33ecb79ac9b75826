"""Plans one read: the requests to the disk and the chunks that the requests complete.

Reads of the same expert and parts share a plan.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache

from zipmoe.errors import CorruptData
from zipmoe.store.format.checksum import xxh3
from zipmoe.store.format.layout import ChunkSpan, ExpertRecord
from zipmoe.store.read.reader import ChunkDamage, ReadRequest, StoreReader
from zipmoe.types import ExpertKey, Part

CACHED_PLANS = 1024
"""Number of plans that are kept; a plan takes about 4 KB."""


class ReadPlan:
    """The requests of a read and the chunks that the requests complete.

    Attributes:
        requests: in ascending order.
        sizes: bytes of each chunk, in the order of the record.
        first_tensor: offsets of the chunks of the expert's first tensor that are read; empty if the expert has no other
            tensor.
    """

    __slots__ = ("_chunks", "_ends", "_key", "_record", "first_tensor", "requests", "sizes")

    def __init__(self, key: ExpertKey, record: ExpertRecord, parts: Part, requests: list[ReadRequest]) -> None:
        self.requests = tuple(requests)
        self._key = key
        self._record = record
        self._chunks = tuple(record.chunks(parts))
        self._ends = tuple(chunk.end for chunk in self._chunks)
        self.sizes = tuple(chunk.nbytes for chunk in self._chunks)
        first, *others = record.tensors
        of_first = {chunk.offset for chunk in (*first.e_chunks, first.sm_chunk) if others}
        self.first_tensor = frozenset(chunk.offset for chunk in self._chunks if chunk.offset in of_first)

    def landed(self, request: ReadRequest, missing: list[int]) -> list[ChunkSpan]:
        """Subtracts a request's bytes from the missing bytes of each chunk; returns the chunks that it completes."""
        complete: list[ChunkSpan] = []
        for index in range(bisect_right(self._ends, request.offset), len(self._chunks)):
            chunk = self._chunks[index]
            if chunk.offset >= request.end:
                break
            missing[index] -= min(request.end, chunk.end) - max(request.offset, chunk.offset)
            if missing[index] == 0:
                complete.append(chunk)
        return complete

    def check(self, chunk: ChunkSpan, e_slot: memoryview, sm_slot: memoryview) -> None:
        """Verifies the checksum of a complete chunk.

        Raises:
            CorruptData: the bytes differ from the packed bytes.
        """
        e_bytes = self._record.e_bytes
        is_e = chunk.offset < e_bytes
        content = e_slot[chunk.offset : chunk.end] if is_e else sm_slot[chunk.offset - e_bytes : chunk.end - e_bytes]
        if xxh3(content) != chunk.xxh3:
            raise CorruptData(f"{self._key}: {self._describe(chunk)} has a wrong checksum")

    def _describe(self, chunk: ChunkSpan) -> str:
        for index, tensor in enumerate(self._record.tensors):
            if chunk is tensor.sm_chunk:
                return ChunkDamage(index, Part.SM, 0).describe(self._record)
            if chunk in tensor.e_chunks:
                return ChunkDamage(index, Part.E, tensor.e_chunks.index(chunk)).describe(self._record)
        raise AssertionError("a chunk of another record")


def read_planner(reader: StoreReader, request_bytes: int) -> Callable[[ExpertKey, Part], ReadPlan]:
    """Makes the function that plans reads and caches the latest plans.

    Args:
        reader: reader of the store.
        request_bytes: bytes of the largest request to the disk.

    Returns:
        A function of expert and parts that raises NotFound for an unknown expert.
    """

    @lru_cache(CACHED_PLANS)
    def plan(key: ExpertKey, parts: Part) -> ReadPlan:
        return ReadPlan(key, reader.manifest.record(key), parts, reader.requests(key, parts, request_bytes))

    return plan
