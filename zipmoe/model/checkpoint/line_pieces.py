"""Turns lines of checkpoint tensors into the pieces of a matrix: byte ranges, cast ranges, transposed ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from zipmoe.model.checkpoint.cast_piece import CastPiece
from zipmoe.model.checkpoint.shard import DTYPE_BITS, TensorEntry
from zipmoe.model.checkpoint.transposed_piece import TransposedPiece
from zipmoe.store.pack.source import ByteRange, Piece

_READS_A_BYTE = 4
"""A column is read together with its neighbours. A fused matrix may be read once for the gate and once for the rest."""


class Axis(IntEnum):
    """The dimension along which the lines of a checkpoint tensor are numbered."""

    ROWS = -2
    COLUMNS = -1

    @property
    def across(self) -> int:
        """The dimension in which a line extends."""
        return int(Axis.ROWS + Axis.COLUMNS - self)


class Segment(NamedTuple):
    """Lines of a matrix that are adjacent in one checkpoint tensor."""

    source: int
    """Index into the group's sources."""

    first_line: int
    """Number of the line in the source tensor; all dimensions but that of the axis count as one in front of it."""

    line_count: int


def line_pieces(axis: Axis, segments: Sequence[Segment], entries: Sequence[TensorEntry]) -> tuple[Piece, ...] | None:
    """Lists the bytes of a matrix, as pieces; those of the same dtype that adjoin in a file become one.

    None if a line is neither adjacent in the file nor a column there, or if single columns are picked from so many
    places that more than `_READS_A_BYTE` times the matrix would be read.
    """
    pieces: list[Piece] = []
    for segment in segments:
        for piece in _segment_pieces(axis, segment, entries[segment.source]):
            if piece is None:
                return None
            joined = _joined(pieces[-1], piece) if pieces else None
            pieces[-1:] = [joined] if joined is not None else [*pieces[-1:], piece]
    transposed = [piece for piece in pieces if isinstance(piece, TransposedPiece)]
    read_weights = sum(piece.rows * piece.row_stride for piece in transposed)
    return tuple(pieces) if read_weights <= _READS_A_BYTE * sum(p.rows * p.cols for p in transposed) else None


def _segment_pieces(axis: Axis, segment: Segment, entry: TensorEntry) -> Iterator[Piece | None]:
    lines, numbers = entry.shape[axis], entry.shape[axis.across]
    line_step, number_step = entry.steps[axis], entry.steps[axis.across]
    number_bytes = DTYPE_BITS[entry.dtype] // 8

    def place(first: int, count: int) -> ByteRange:
        return ByteRange(entry.path, entry.offset + first * number_bytes, count * number_bytes)

    if axis is Axis.ROWS and entry.is_row_major:
        yield _cast(place(segment.first_line * numbers, segment.line_count * numbers), entry.dtype)
        return
    line, end = segment.first_line, segment.first_line + segment.line_count
    while line < end:
        block, line_in_block = divmod(line, lines)
        count = min(end - line, lines - line_in_block)
        index = np.unravel_index(block, entry.shape[: Axis.ROWS]) if len(entry.shape) > -Axis.ROWS else ()
        first = sum(int(i) * step for i, step in zip(index, entry.steps, strict=False)) + line_in_block * line_step
        if number_step == 1:
            yield from (_cast(place(first + i * line_step, numbers), entry.dtype) for i in range(count))
        elif line_step == 1 and number_step >= count:
            extent = place(first, (numbers - 1) * number_step + count)
            yield TransposedPiece(extent, entry.dtype, numbers, count, number_step)
        else:
            yield None
        line += count


def _cast(place: ByteRange, dtype: str) -> Piece:
    return place if dtype == "BF16" else CastPiece(place, dtype)


def _joined(first: Piece, second: Piece) -> Piece | None:
    """Joins two pieces that adjoin; None for others."""
    if isinstance(first, CastPiece) and isinstance(second, CastPiece) and first.source_dtype == second.source_dtype:
        place = _joined(first.source, second.source)
        return CastPiece(place, first.source_dtype) if isinstance(place, ByteRange) else None
    if not isinstance(first, ByteRange) or not isinstance(second, ByteRange):
        return None
    adjoin = (first.path, first.offset + first.nbytes) == (second.path, second.offset)
    return ByteRange(first.path, first.offset, first.nbytes + second.nbytes) if adjoin else None
