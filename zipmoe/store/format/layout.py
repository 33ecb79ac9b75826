"""Layout of an expert's bytes, in a record on disk and in memory once recovered: pure arithmetic.

A record is `[E of tensor 0][E of tensor 1]...[SM of tensor 0][SM of tensor 1]...`. The expert store reads the E part
into an E slot and the SM part into an SM slot, each from byte 0 of the slot on. Offsets are never stored: they follow
from the shapes and the stored sizes of the E-chunks (FORMAT.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain

from zipmoe.errors import InvalidRequest
from zipmoe.types import Part

ALIGNMENT_BYTES = 4096
"""Records, and the parts inside a record, begin on a multiple of 4096, the largest alignment that O_DIRECT needs."""

CHUNK_ALIGNMENT_BYTES = 64
"""E-chunks, and the tensors of a recovered expert, begin on a multiple of 64, the size of a cache line."""

TAIL_PADDING_BYTES = 128
"""At least 128 zero bytes follow the last E-chunk of a tensor, because recovery kernels may over-read."""

ROW_BLOCK = 8
"""An E-chunk holds a multiple of 8 rows. Only the last E-chunk of a tensor may hold another number."""

MAX_E_CHUNKS = 64
"""The largest number of E-chunks of one tensor."""


def align(nbytes: int, alignment: int = ALIGNMENT_BYTES) -> int:
    """Rounds a byte count up to a multiple of `alignment`."""
    return -(-nbytes // alignment) * alignment


@lru_cache
def e_chunk_rows(rows: int, chunk_count: int) -> tuple[int, ...]:
    """Cuts the rows of a tensor into at most `chunk_count` runs of almost equal length, one for each E-chunk.

    Args:
        rows: rows of the tensor, at least 1.
        chunk_count: number of E-chunks, 1 to `MAX_E_CHUNKS`.

    Returns:
        Row counts in order, with the sum `rows`. Every count but the last is a multiple of 8. Longer runs come first. A
        tensor of fewer than `chunk_count` blocks of 8 rows has one run a block.

    Raises:
        InvalidRequest: an argument is out of range.
    """
    if rows < 1:
        raise InvalidRequest(f"a tensor needs at least 1 row, not {rows}")
    if not 1 <= chunk_count <= MAX_E_CHUNKS:
        raise InvalidRequest(f"E-chunks of a tensor are 1 to {MAX_E_CHUNKS}, not {chunk_count}")
    blocks = -(-rows // ROW_BLOCK)
    chunk_count = min(chunk_count, blocks)
    blocks_each, longer = divmod(blocks, chunk_count)
    counts = [(blocks_each + (index < longer)) * ROW_BLOCK for index in range(chunk_count)]
    counts[-1] += rows - sum(counts)
    return tuple(counts)


@dataclass(frozen=True)
class TensorSpec:
    """Name and shape of a bf16 matrix of an expert, as in the model's module."""

    name: str
    rows: int
    cols: int

    @property
    def weight_count(self) -> int:
        """Number of weights, equal to the bytes of the SM plane and to the bytes of the exponent plane."""
        return self.rows * self.cols

    @property
    def nbytes(self) -> int:
        """Bytes of the bf16 matrix."""
        return 2 * self.weight_count


@dataclass(frozen=True)
class ExpertSpec:
    """The matrices of every expert of one layer, in the order of the record."""

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def tensor_offsets(self) -> tuple[int, ...]:
        """Offset of each matrix in a recovered expert; multiples of 64 bytes."""
        ends = [0]
        for tensor in self.tensors:
            ends.append(align(ends[-1] + tensor.nbytes, CHUNK_ALIGNMENT_BYTES))
        return tuple(ends[:-1])

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of a recovered expert: all matrices, each padded to a multiple of 64 bytes."""
        return sum(align(tensor.nbytes, CHUNK_ALIGNMENT_BYTES) for tensor in self.tensors)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the bf16 weights alone, without padding."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class ChunkSpan:
    """Place of a chunk in its record, rows that the chunk covers, and xxh3-64 of the stored bytes."""

    offset: int
    nbytes: int
    first_row: int
    rows: int
    xxh3: int

    @property
    def end(self) -> int:
        """Offset of the byte after the chunk, relative to the record."""
        return self.offset + self.nbytes


@dataclass(frozen=True)
class TensorRecord:
    """The chunks of a matrix, and the xxh3-64 of the recovered bf16 bytes."""

    spec: TensorSpec
    e_chunks: tuple[ChunkSpan, ...]
    sm_chunk: ChunkSpan
    xxh3: int


@dataclass(frozen=True)
class ExpertRecord:
    """The record of an expert: `nbytes` bytes at `offset` of expert file number `file`."""

    file: int
    offset: int
    tensors: tuple[TensorRecord, ...]
    e_bytes: int
    nbytes: int

    def span(self, parts: Part) -> tuple[int, int]:
        """Returns the place of some parts in the record, as one contiguous run of aligned bytes.

        Args:
            parts: E, SM or both.

        Returns:
            (begin, end) in bytes relative to the record, both multiples of 4096.

        Raises:
            InvalidRequest: `parts` names no part.
        """
        if parts == Part.ALL:
            return (0, self.nbytes)
        if parts == Part.E:
            return (0, self.e_bytes)
        if parts == Part.SM:
            return (self.e_bytes, self.nbytes)
        raise InvalidRequest(f"parts have to be E, SM or both, not {int(parts)}")

    def chunks(self, parts: Part) -> Iterable[ChunkSpan]:
        """Lists the chunks of some parts in the order of the record."""
        e_chunks = (chunk for tensor in self.tensors for chunk in tensor.e_chunks) if parts & Part.E else ()
        sm_chunks = (tensor.sm_chunk for tensor in self.tensors) if parts & Part.SM else ()
        return chain(e_chunks, sm_chunks)


@dataclass(frozen=True)
class PackedTensorEntry:
    """Stored sizes and checksums of a packed tensor, as in the manifest. All other layout numbers are derived."""

    e_sizes: tuple[int, ...]
    e_xxh3: tuple[int, ...]
    sm_xxh3: int
    tensor_xxh3: int


def lay_out(
    spec: ExpertSpec, entries: Sequence[PackedTensorEntry], chunk_count: int, file: int, offset: int
) -> ExpertRecord:
    """Derives every offset of a record from the shapes and the stored sizes.

    Args:
        spec: the expert's matrices.
        entries: stored sizes and checksums, one entry a matrix, with as many E-chunks as `e_chunk_rows` yields.
        chunk_count: E-chunks of a tensor, as in `e_chunk_rows`.
        file: number of the expert file.
        offset: start of the record in that file.

    Returns:
        The record. By construction, its spans cannot overlap.
    """
    position = 0
    e_parts: list[tuple[ChunkSpan, ...]] = []
    for tensor, entry in zip(spec.tensors, entries, strict=True):
        chunks: list[ChunkSpan] = []
        first_row = 0
        row_counts = e_chunk_rows(tensor.rows, chunk_count)
        for rows, nbytes, xxh3 in zip(row_counts, entry.e_sizes, entry.e_xxh3, strict=True):
            position = align(position, CHUNK_ALIGNMENT_BYTES)
            chunks.append(ChunkSpan(position, nbytes, first_row, rows, xxh3))
            position += nbytes
            first_row += rows
        position = align(position + TAIL_PADDING_BYTES)
        e_parts.append(tuple(chunks))
    e_bytes = position
    tensors: list[TensorRecord] = []
    for tensor, entry, e_chunks in zip(spec.tensors, entries, e_parts, strict=True):
        sm_chunk = ChunkSpan(position, tensor.weight_count, 0, tensor.rows, entry.sm_xxh3)
        tensors.append(TensorRecord(tensor, e_chunks, sm_chunk, entry.tensor_xxh3))
        position = align(sm_chunk.end)
    return ExpertRecord(file, offset, tuple(tensors), e_bytes, position)
