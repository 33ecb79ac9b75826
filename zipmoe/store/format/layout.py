"""Where the bytes of an expert stand, in a record on disk and in memory once recovered: pure arithmetic.

A record is `[E of tensor 0][E of tensor 1]...[SM of tensor 0][SM of tensor 1]...`; a chunk slot holds a record verbatim
at offset 0. Offsets are never stored: they follow from the shapes and the stored sizes of the E-chunks (FORMAT.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain

from zipmoe.errors import InvalidRequest
from zipmoe.types import Part

ALIGNMENT_BYTES = 4096
"""Records, and the parts inside a record, begin on a multiple of this: what O_DIRECT asks for at most."""

CHUNK_ALIGNMENT_BYTES = 64
"""E-chunks, and the tensors of a recovered expert, begin on a multiple of this: a cache line."""

TAIL_PADDING_BYTES = 128
"""Zero bytes that follow the last E-chunk of a tensor at least, for decoders that over-read."""

ROW_BLOCK = 8
"""E-chunks hold a multiple of so many rows (the last one of a tensor: what is left): the codecs' block height."""

MAX_E_CHUNKS = 64
"""The most E-chunks that one tensor may be cut into."""


def align(nbytes: int, alignment: int = ALIGNMENT_BYTES) -> int:
    """Rounds a byte count up to a multiple of `alignment`."""
    return -(-nbytes // alignment) * alignment


@lru_cache
def e_chunk_rows(rows: int, chunk_count: int) -> tuple[int, ...]:
    """Cuts the rows of a tensor into at most `chunk_count` runs of almost equal length.

    Args:
        rows: rows of the tensor, at least 1.
        chunk_count: how many E-chunks are wanted, 1 to `MAX_E_CHUNKS`.

    Returns:
        Row counts in order, summing up to `rows`; each a multiple of 8 but the last. There are fewer than `chunk_count`
        where the tensor has fewer blocks of 8 rows; longer runs come first.

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
    """Name and shape of one bf16 matrix of an expert, as the model's module holds it."""

    name: str
    rows: int
    cols: int

    @property
    def weight_count(self) -> int:
        """Weights, which is also the bytes of its SM plane and of its exponent plane."""
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
        """Where each matrix begins in a recovered expert; multiples of 64 bytes."""
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
    """One chunk: where its stored bytes stand in the record, which rows it covers, and the xxh3-64 of its bytes."""

    offset: int
    nbytes: int
    first_row: int
    rows: int
    xxh3: int

    @property
    def end(self) -> int:
        """The byte after the chunk, relative to the record."""
        return self.offset + self.nbytes


@dataclass(frozen=True)
class TensorRecord:
    """The chunks of one matrix, and the xxh3-64 of its recovered bf16 bytes."""

    spec: TensorSpec
    e_chunks: tuple[ChunkSpan, ...]
    sm_chunk: ChunkSpan
    xxh3: int


@dataclass(frozen=True)
class ExpertRecord:
    """The record of one expert: `nbytes` bytes at `offset` of expert file number `file`."""

    file: int
    offset: int
    tensors: tuple[TensorRecord, ...]
    e_bytes: int
    nbytes: int

    def span(self, parts: Part) -> tuple[int, int]:
        """Tells where some parts stand in the record, as one contiguous run of aligned bytes.

        Args:
            parts: E, SM or both.

        Returns:
            (begin, end) in bytes relative to the record, both multiples of 4096.

        Raises:
            InvalidRequest: no part is named.
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
class TensorSums:
    """What is measured, not derived, about one packed tensor: the manifest's entry for it."""

    e_sizes: tuple[int, ...]
    e_xxh3: tuple[int, ...]
    sm_xxh3: int
    tensor_xxh3: int


def lay_out(spec: ExpertSpec, sums: Sequence[TensorSums], chunk_count: int, file: int, offset: int) -> ExpertRecord:
    """Derives every offset of a record from the shapes and the stored sizes.

    Args:
        spec: the expert's matrices.
        sums: stored sizes and checksums, one entry a matrix, with as many E-chunks as `e_chunk_rows` yields.
        chunk_count: E-chunks of a tensor, as in `e_chunk_rows`.
        file: number of the expert file.
        offset: where the record begins in that file.

    Returns:
        The record. Spans inside it cannot overlap, by construction.
    """
    position = 0
    e_parts: list[tuple[ChunkSpan, ...]] = []
    for tensor, tensor_sums in zip(spec.tensors, sums, strict=True):
        chunks: list[ChunkSpan] = []
        first_row = 0
        row_counts = e_chunk_rows(tensor.rows, chunk_count)
        for rows, nbytes, xxh3 in zip(row_counts, tensor_sums.e_sizes, tensor_sums.e_xxh3, strict=True):
            position = align(position, CHUNK_ALIGNMENT_BYTES)
            chunks.append(ChunkSpan(position, nbytes, first_row, rows, xxh3))
            position += nbytes
            first_row += rows
        position = align(position + TAIL_PADDING_BYTES)
        e_parts.append(tuple(chunks))
    e_bytes = position
    tensors: list[TensorRecord] = []
    for tensor, tensor_sums, e_chunks in zip(spec.tensors, sums, e_parts, strict=True):
        sm_chunk = ChunkSpan(position, tensor.weight_count, 0, tensor.rows, tensor_sums.sm_xxh3)
        tensors.append(TensorRecord(tensor, e_chunks, sm_chunk, tensor_sums.tensor_xxh3))
        position = align(sm_chunk.end)
    return ExpertRecord(file, offset, tuple(tensors), e_bytes, position)
