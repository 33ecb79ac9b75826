"""Finds the checkpoint bytes of each row of an expert parameter, by converting row numbers.

An expert's matrix must be a concatenation of byte ranges of the checkpoint, which are cast to bf16. This module does
not restate transformers' conversion operations. It runs the operations on stand-in tensors that hold row numbers
instead of weights. The row dimensions of a stand-in are those of the checkpoint tensor. An operation that moves whole
rows (merge, concatenate, split, interleave along rows) yields the origin of each row. An operation that changes the
weights in another way is detected and refused.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.cast_piece import CAST_DTYPES, CastPiece
from zipmoe.model.checkpoint.key_plan import ConversionGroup
from zipmoe.model.checkpoint.shard import DTYPE_BITS, TensorEntry
from zipmoe.model.checkpoint.skeleton import Skeleton
from zipmoe.store.pack.source import ByteRange, Piece
from zipmoe.system_error import first_line

# Columns of a stand-in. Four columns show every reordering of columns that transformers' operations can do.
# With two columns, interleaving by halves would look like the identity.
_COLS = 4

Rows = npt.NDArray[np.int64]


class Segment(NamedTuple):
    """Rows of a matrix that are adjacent in one checkpoint tensor."""

    source: int
    """Index into the group's sources."""

    first_row: int
    """Row number in the source tensor, with all dimensions but the last flattened into one."""

    row_count: int


class RowTracer:
    """Finds the checkpoint bytes of expert parameters of one model.

    The result of a layer is reused for other layers with the same conversion of tensors of the same shapes in the same
    order.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self._known: dict[Hashable, list[list[Segment]]] = {}

    def trace_matrices(self, group: ConversionGroup, shape: Sequence[int]) -> list[tuple[Piece, ...]]:
        """Finds the checkpoint bytes of a bf16 parameter, matrix by matrix.

        Args:
            group: the checkpoint tensors of the parameter, and their conversion.
            shape: the parameter's shape (matrices, rows, columns), or (rows, columns) for a single matrix.

        Returns:
            The pieces of each matrix. Their concatenation is the matrix, row-major, as stock's module holds it.

        Raises:
            UnsupportedModel: a tensor is neither bf16 nor of `CAST_DTYPES`, the conversion does more than move whole
                rows, or the result has another shape.

        Cost: 100 bytes of memory for each row of the parameter.
        """
        shape = tuple(shape)
        for _, entry in group.sources:
            _check_dtype(entry)
        sources = tuple((pattern, entry.shape) for pattern, entry in group.sources)
        key = (id(group.converter), sources if group.converter else sources[0][1], shape)
        if key not in self._known:
            self._known[key] = _segments(_trace_rows(group, shape, self._skeleton), group, shape)
        entries = [entry for _, entry in group.sources]
        return [_pieces(segments, entries, shape[-1]) for segments in self._known[key]]


def _trace_rows(group: ConversionGroup, shape: tuple[int, ...], skeleton: Skeleton) -> Rows:
    """Returns the source row of each row of the parameter. Source rows are numbered through all sources."""
    entries = [entry for _, entry in group.sources]
    if group.converter is None:
        if entries[0].shape != shape:
            raise UnsupportedModel(
                f"tensor {entries[0].name!r} has shape {list(entries[0].shape)}, the model {list(shape)}"
            )
        return np.arange(int(np.prod(shape[:-1])), dtype=np.int64)
    if wrong := [entry for entry in entries if not entry.shape or entry.shape[-1] != shape[-1]]:
        raise UnsupportedModel(
            f"tensor {wrong[0].name!r} has shape {list(wrong[0].shape)}, {group.target} has {shape[-1]} columns"
        )
    operations = ", ".join(repr(operation) for operation in group.converter.operations)
    stand_ins = _stand_ins(entries)
    try:
        result = group.convert(stand_ins, skeleton)[group.target]
    except Exception as error:
        raise UnsupportedModel(
            f"{group.target} is made of {len(entries)} tensors like {entries[0].name!r} by {operations}, "
            f"which does not work on their rows: {first_line(error)}"
        ) from error
    if tuple(result.shape) != (*shape[:-1], _COLS):
        raise UnsupportedModel(
            f"{group.target} should have shape {list(shape)}, {len(entries)} tensors like {entries[0].name!r} make "
            f"{[*result.shape[:-1], shape[-1]]} by {operations}"
        )
    values = result.reshape(-1, _COLS).numpy()
    numbers = values[:, 0] // _COLS
    row_count = sum(stand_in.numel() for stand_in in stand_ins.values()) // _COLS
    moved_whole = bool((values == (numbers * _COLS)[:, None] + np.arange(_COLS)).all())
    if result.dtype != torch.int64 or not moved_whole or numbers.min() < 0 or numbers.max() >= row_count:
        raise UnsupportedModel(f"{group.target} is made by {operations}, which changes more than the order of rows")
    return numbers


def _stand_ins(entries: Sequence[TensorEntry]) -> dict[str, torch.Tensor]:
    """Makes tensors of the entries' shapes, but with `_COLS` columns. Each value is unique and encodes its row."""
    stand_ins = {}
    first = 0
    for entry in entries:
        count = _rows_of(entry) * _COLS
        stand_ins[entry.name] = torch.arange(first, first + count).reshape(*entry.shape[:-1], _COLS)
        first += count
    return stand_ins


def _segments(numbers: Rows, group: ConversionGroup, shape: tuple[int, ...]) -> list[list[Segment]]:
    """Converts row numbers into as few segments as possible, matrix by matrix."""
    matrix_rows = shape[-2]
    first_rows = np.cumsum([0, *(_rows_of(entry) for _, entry in group.sources)])
    sources = np.searchsorted(first_rows, numbers, side="right") - 1
    breaks = (np.diff(numbers) != 1) | (np.diff(sources) != 0)
    breaks[matrix_rows - 1 :: matrix_rows] = True  # a segment ends with its matrix
    matrices: list[list[Segment]] = [[] for _ in range(len(numbers) // matrix_rows)]
    for begin, end in pairwise((0, *(np.flatnonzero(breaks) + 1).tolist(), len(numbers))):
        source = int(sources[begin])
        matrices[begin // matrix_rows].append(Segment(source, int(numbers[begin] - first_rows[source]), end - begin))
    return matrices


def _pieces(segments: Sequence[Segment], entries: Sequence[TensorEntry], cols: int) -> tuple[Piece, ...]:
    """Lists the bytes of segments. Segments that adjoin in a file and have the same dtype become one piece."""
    joined: list[tuple[ByteRange, str]] = []
    for segment in segments:
        entry = entries[segment.source]
        row_bytes = cols * DTYPE_BITS[entry.dtype] // 8
        offset = entry.offset + segment.first_row * row_bytes
        nbytes = segment.row_count * row_bytes
        last, dtype = joined[-1] if joined else (None, "")
        if last is not None and (last.path, last.offset + last.nbytes, dtype) == (entry.path, offset, entry.dtype):
            joined[-1] = (ByteRange(last.path, last.offset, last.nbytes + nbytes), dtype)
        else:
            joined.append((ByteRange(entry.path, offset, nbytes), entry.dtype))
    return tuple(place if dtype == "BF16" else CastPiece(place, dtype) for place, dtype in joined)


def _check_dtype(entry: TensorEntry) -> None:
    if entry.dtype != "BF16" and entry.dtype not in CAST_DTYPES:
        raise UnsupportedModel(
            f"routed tensor {entry.name!r} has dtype {entry.dtype}, as only quantised checkpoints have it; "
            f"BF16 is packed, and {', '.join(CAST_DTYPES)} are cast to it",
            next_step="use a checkpoint of the model in bfloat16, float16 or float32",
        )


def _rows_of(entry: TensorEntry) -> int:
    return int(np.prod(entry.shape[:-1]))
