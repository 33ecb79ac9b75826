"""Which checkpoint bytes each row of an expert parameter is made of, found by converting row numbers.

An expert's matrix must be a concatenation of byte ranges of the checkpoint. Instead of writing down once more what
transformers' conversion operations do, they are run: on tensors of the checkpoint's shapes that hold row numbers in
place of weights. Whatever moves whole rows (merge, concatenate, split, interleave along rows) then tells where each
row comes from; whatever does anything else to the weights is seen, and refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from zipmoe.errors import UnsupportedModel
from zipmoe.model.catalogue.key_plan import Group
from zipmoe.model.catalogue.skeleton import Skeleton
from zipmoe.model.shard import TensorEntry
from zipmoe.store.source import ByteRange

# Stand-ins have this many columns. Four show every reordering of columns that transformers' operations can do:
# with two, interleaving by halves would look like the identity.
_COLS = 4
_BF16_BYTES = 2

Rows = npt.NDArray[np.int64]


def trace_matrices(group: Group, shape: Sequence[int], skeleton: Skeleton) -> list[tuple[ByteRange, ...]]:
    """Finds the checkpoint bytes of a bf16 parameter, matrix by matrix.

    Args:
        group: the checkpoint tensors and the conversion that make the parameter; all bf16.
        shape: the parameter's shape (matrices, rows, columns), or (rows, columns) for a single matrix.
        skeleton: the model.

    Returns:
        For each matrix its byte ranges; their concatenation is the matrix, row-major, as the module holds it.

    Raises:
        UnsupportedModel: the conversion does something else than moving whole rows, or its result has another shape.

    Cost: 32 bytes of memory a row of the parameter.
    """
    rows, cols = _trace_rows(group, tuple(shape), skeleton)
    entries = [entry for _, entry in group.sources]
    row_bytes = cols * _BF16_BYTES
    first_rows = np.cumsum([0, *(entry.nbytes // row_bytes for entry in entries)])
    return [_ranges(matrix, entries, first_rows, row_bytes) for matrix in rows.reshape(-1, shape[-2])]


def _trace_rows(group: Group, shape: tuple[int, ...], skeleton: Skeleton) -> tuple[Rows, int]:
    """Returns the number of each row of the parameter, counted through all sources, and the columns of a row."""
    if group.converter is None:
        entry = group.sources[0][1]
        if entry.shape != shape:
            raise UnsupportedModel(f"tensor {entry.name!r} has shape {list(entry.shape)}, the model {list(shape)}")
        return np.arange(int(np.prod(shape[:-1])), dtype=np.int64), shape[-1]
    entries = [entry for _, entry in group.sources]
    if wrong := [entry for entry in entries if not entry.shape or entry.shape[-1] != shape[-1]]:
        raise UnsupportedModel(
            f"tensor {wrong[0].name!r} has shape {list(wrong[0].shape)}, {group.target} has {shape[-1]} columns"
        )
    operations = ", ".join(repr(operation) for operation in group.converter.operations)
    stand_ins = _stand_ins(entries)
    try:
        result = group.convert(stand_ins, skeleton)[group.target]
    except Exception as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModel(
            f"{group.target} is made of {len(entries)} tensors like {entries[0].name!r} by {operations}, "
            f"which does not work on their rows: {cause}"
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
    return numbers, shape[-1]


def _stand_ins(entries: Sequence[TensorEntry]) -> dict[str, torch.Tensor]:
    """Tensors of the entries' shapes but `_COLS` columns, in which every value is unique and tells its row."""
    stand_ins = {}
    first = 0
    for entry in entries:
        count = int(np.prod(entry.shape[:-1])) * _COLS
        stand_ins[entry.name] = torch.arange(first, first + count).reshape(*entry.shape[:-1], _COLS)
        first += count
    return stand_ins


def _ranges(rows: Rows, entries: Sequence[TensorEntry], first_rows: Rows, row_bytes: int) -> tuple[ByteRange, ...]:
    """Turns the row numbers of one matrix into as few byte ranges as possible."""
    source = np.searchsorted(first_rows, rows, side="right") - 1
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(source) != 0)) + 1
    ranges: list[ByteRange] = []
    for begin, end in pairwise((0, *breaks.tolist(), len(rows))):
        entry = entries[source[begin]]
        offset = entry.offset + int(rows[begin] - first_rows[source[begin]]) * row_bytes
        nbytes = (end - begin) * row_bytes
        last = ranges[-1] if ranges else None
        if last is not None and last.path == entry.path and last.offset + last.nbytes == offset:
            ranges[-1] = ByteRange(last.path, last.offset, last.nbytes + nbytes)
        else:
            ranges.append(ByteRange(entry.path, offset, nbytes))
    return tuple(ranges)
