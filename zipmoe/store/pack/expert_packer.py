"""Turns an expert of a checkpoint into a record: split into planes, compress, compute checksums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zipmoe.codec.base import Codec
from zipmoe.kernels.planes import split_planes
from zipmoe.store.format.checksum import xxh3
from zipmoe.store.format.layout import ExpertRecord, ExpertSpec, PackedTensorEntry, TensorSpec, e_chunk_rows
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import TensorSource
from zipmoe.types import Part

_ZEROS = bytes(8192)


class PackingBuffers:
    """Reusable buffers for packing an expert, at most 2 + 1 + 2 bytes a weight.

    The buffers hold the bf16 bytes and the exponent plane of one matrix, and the SM planes of all matrices. The codec
    allocates the E-chunks separately; `nbytes` counts one byte a weight for E-chunks.
    """

    def __init__(self, specs: Sequence[ExpertSpec]) -> None:
        largest = max(tensor.weight_count for spec in specs for tensor in spec.tensors)
        self.bf16 = memoryview(bytearray(2 * largest))
        self.e_plane = memoryview(bytearray(largest))
        self.sm_planes = memoryview(bytearray(max(spec.weight_bytes // 2 for spec in specs)))

    @staticmethod
    def nbytes(specs: Sequence[ExpertSpec]) -> int:
        """Computes the bytes of the buffers for some layers, including the compressed chunks of the packed expert."""
        largest = max(tensor.weight_count for spec in specs for tensor in spec.tensors)
        return 3 * largest + 2 * max(spec.weight_bytes // 2 for spec in specs)


@dataclass(frozen=True)
class PackedExpert:
    """Chunks and checksums of an expert. The SM-chunks are views of the buffers, valid until the buffers are reused."""

    entries: tuple[PackedTensorEntry, ...]
    e_chunks: tuple[bytes, ...]
    sm_chunks: tuple[memoryview, ...]

    def buffers(self, record: ExpertRecord) -> Iterator[bytes | memoryview]:
        """Yields the bytes of the record in order, zero padding included."""
        position = 0
        chunks: tuple[bytes | memoryview, ...] = (*self.e_chunks, *self.sm_chunks)
        for span, data in zip(record.chunks(Part.ALL), chunks, strict=True):
            yield _ZEROS[: span.offset - position]
            yield data
            position = span.end
        yield _ZEROS[: record.nbytes - position]


class ExpertPacker:
    """Packs experts with one codec, in any number of threads."""

    def __init__(self, pieces: PieceReader, codec: Codec, chunk_count: int) -> None:
        self._pieces = pieces
        self._codec = codec
        self.chunk_count = chunk_count

    def pack(self, tensors: Sequence[TensorSource], buffers: PackingBuffers) -> PackedExpert:
        """Reads, splits and compresses one expert.

        Raises:
            NotFound, InvalidRequest, CorruptData: bytes of the expert cannot be read.

        Cost: that of the codec. All heavy work releases the GIL.
        Thread: any, with buffers of its own.
        """
        entries: list[PackedTensorEntry] = []
        e_chunks: list[bytes] = []
        sm_chunks: list[memoryview] = []
        sm_begin = 0
        for tensor in tensors:
            count = tensor.spec.weight_count
            bf16, e_plane = buffers.bf16[: 2 * count], buffers.e_plane[:count]
            sm_plane = buffers.sm_planes[sm_begin : sm_begin + count]
            sm_begin += count
            self._pieces.read(tensor.pieces, bf16)
            split_planes(bf16, sm_plane, e_plane)
            chunks = self._compress(e_plane, tensor.spec)
            sizes, e_xxh3 = tuple(len(chunk) for chunk in chunks), tuple(xxh3(chunk) for chunk in chunks)
            entries.append(PackedTensorEntry(sizes, e_xxh3, xxh3(sm_plane), xxh3(bf16)))
            e_chunks += chunks
            sm_chunks.append(sm_plane)
        return PackedExpert(tuple(entries), tuple(e_chunks), tuple(sm_chunks))

    def sample_ratio(self, tensor: TensorSource, buffers: PackingBuffers) -> float:
        """Compresses a tensor and returns the ratio of E-chunk bytes to exponent plane bytes."""
        packed = self.pack((tensor,), buffers)
        return sum(len(chunk) for chunk in packed.e_chunks) / tensor.spec.weight_count

    def _compress(self, e_plane: memoryview, spec: TensorSpec) -> list[bytes]:
        chunks: list[bytes] = []
        begin = 0
        for rows in e_chunk_rows(spec.rows, self.chunk_count):
            end = begin + rows * spec.cols
            chunks.append(self._codec.compress(e_plane[begin:end], spec.cols))
            begin = end
        return chunks
