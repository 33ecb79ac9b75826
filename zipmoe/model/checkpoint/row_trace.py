"""Finds the checkpoint bytes of each row of an expert parameter, by converting row numbers.

This module does not restate transformers' conversion operations. It runs the operations on stand-in tensors that hold
numbers of lines instead of weights, and sees how the lines have moved:

    rows        A row of the parameter is a row of a checkpoint tensor (merge, concatenate, split, interleave along
                rows). The matrices are byte ranges, which are cast to bf16.
    columns     A row of the parameter is a column of a checkpoint tensor (transpose, with any of the above). The
                matrices are transposed while they are read.
    neither     The group is converted in memory, by the operations themselves.

A stand-in has the dimensions of the checkpoint tensor, but lines of only a few numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from itertools import pairwise, takewhile
from math import prod
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.cast_piece import CAST_DTYPES
from zipmoe.model.checkpoint.conversion import Conversions, converted_pieces, meta_results
from zipmoe.model.checkpoint.key_plan import ConversionGroup
from zipmoe.model.checkpoint.line_pieces import Axis, Segment, line_pieces
from zipmoe.model.checkpoint.shard import COMPARE_SHARDS, UNQUANTISED, TensorEntry
from zipmoe.model.checkpoint.skeleton import Skeleton
from zipmoe.store.pack.source import Piece

# Numbers of a stand-in's line. Four numbers show every reordering inside a line that transformers' operations can do.
# With two, interleaving by halves would look like the identity.
_NUMBERS = 4

Lines = npt.NDArray[np.int64]


class _Trace(NamedTuple):
    axis: Axis
    matrices: list[list[Segment]]


class RowTracer:
    """Finds the checkpoint bytes of expert parameters of one model.

    The result of a layer is reused for other layers with the same conversion of tensors of the same shapes in the same
    order.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self._conversions = Conversions(skeleton)
        self._known: dict[Hashable, _Trace | None] = {}

    def trace_matrices(
        self, group: ConversionGroup, parameter: str, matrix_rows: int, batch: Hashable
    ) -> list[tuple[Piece, ...]]:
        """Finds the checkpoint bytes of a bf16 parameter, matrix by matrix.

        Args:
            group: the checkpoint tensors of the parameter, and their conversion.
            parameter: name of the parameter. All its dimensions but the last count as rows.
            matrix_rows: rows of a matrix; the parameter is matrices one below the other.
            batch: the batch of the parameter, for `Conversions`.

        Returns:
            The pieces of each matrix. Their concatenation is the matrix, row-major, as stock's module holds it.

        Raises:
            UnsupportedModel: a tensor is neither bf16 nor of `CAST_DTYPES`, or the conversion fails or gives another
                shape or dtype than the model's.
            BudgetInfeasible, ResourceExhausted: the group has to be converted in memory, and there is too little.

        Cost: 100 bytes of memory for each line of the parameter.
        """
        shape = tuple(self._skeleton.state[parameter].shape)
        entries = [entry for _, entry in group.sources]
        for entry in entries:
            _check_dtype(entry)
        sources = tuple((pattern, entry.shape) for pattern, entry in group.sources)
        which = _apart(parameter, group.target)
        key = (id(group.converter), sources if group.converter else sources[0][1], shape, matrix_rows, which)
        if key not in self._known:
            _check_result(group, parameter, shape, self._skeleton)
            self._known[key] = _trace(group, parameter, shape, matrix_rows, self._skeleton)
        trace = self._known[key]
        if trace is not None:
            traced = (line_pieces(trace.axis, segments, entries) for segments in trace.matrices)
            matrices = [pieces for pieces in takewhile(lambda pieces: pieces is not None, traced) if pieces is not None]
            if len(matrices) == len(trace.matrices):
                return matrices
        converted = converted_pieces(
            self._conversions, batch, group, parameter, 2 * prod(shape), prod(shape[:-1]) // matrix_rows
        )
        return [(piece,) for piece in converted]


def _check_result(group: ConversionGroup, parameter: str, shape: tuple[int, ...], skeleton: Skeleton) -> None:
    entries = [entry for _, entry in group.sources]
    if group.converter is None:
        if entries[0].shape != shape:
            raise UnsupportedModel(
                f"tensor {entries[0].name!r} has shape {list(entries[0].shape)}, the model {list(shape)}",
                next_step=COMPARE_SHARDS,
            )
        return
    results = meta_results(group, skeleton)
    if parameter not in results:
        raise UnsupportedModel(
            f"{group.operations} gives {', '.join(results)}, but not {parameter}", next_step=COMPARE_SHARDS
        )
    result = results[parameter]
    if tuple(result.shape) != shape or result.dtype != torch.bfloat16:
        raise UnsupportedModel(
            f"{parameter} should be bf16 of shape {list(shape)}, {len(entries)} tensors like {entries[0].name!r} make "
            f"{'bf16' if result.dtype == torch.bfloat16 else result.dtype} of shape {list(result.shape)} "
            f"by {group.operations}",
            next_step=COMPARE_SHARDS,
        )


def _trace(
    group: ConversionGroup, parameter: str, shape: tuple[int, ...], matrix_rows: int, skeleton: Skeleton
) -> _Trace | None:
    entries = [entry for _, entry in group.sources]
    for axis in Axis:
        lines = _trace_lines(group, parameter, shape, axis, skeleton)
        if lines is not None:
            line_counts = [_line_count(entry, axis) for entry in entries]
            return _Trace(axis, _segments(lines, line_counts, matrix_rows))
    return None


def _trace_lines(
    group: ConversionGroup, parameter: str, shape: tuple[int, ...], axis: Axis, skeleton: Skeleton
) -> Lines | None:
    """Returns the source line of each row of the parameter; None if the rows are not lines along this axis.

    Source lines are numbered through all sources.
    """
    entries = [entry for _, entry in group.sources]
    if group.converter is None:
        return np.arange(prod(shape[:-1]), dtype=np.int64) if axis is Axis.ROWS else None
    if any(len(entry.shape) < -Axis.ROWS for entry in entries):
        return None
    first_lines = np.cumsum([0, *(_line_count(entry, axis) for entry in entries)])
    try:
        result = group.convert(_stand_ins(entries, axis), skeleton, _shortened_model(skeleton))[parameter]
    except Exception:  # an operation that needs the true sizes, or no integers, may raise any exception
        return None
    if tuple(result.shape) != (*shape[:-1], _NUMBERS) or result.dtype != torch.int64:
        return None
    values = result.reshape(-1, _NUMBERS).numpy()
    lines: Lines = values[:, 0] // _NUMBERS
    moved_whole = bool((values == (lines * _NUMBERS)[:, None] + np.arange(_NUMBERS)).all())
    if not moved_whole or lines.min() < 0 or lines.max() >= first_lines[-1]:
        return None
    lengths = {entries[source].shape[axis.across] for source in np.unique(_sources(lines, first_lines))}
    return lines if lengths == {shape[-1]} else None  # what other parameters of the group use may be shorter


def _stand_ins(entries: Sequence[TensorEntry], axis: Axis) -> dict[str, Any]:
    """Makes tensors of the entries' shapes, but with lines of `_NUMBERS`. Each value is unique and encodes its line."""
    stand_ins = {}
    first = 0
    for entry in entries:
        count = _line_count(entry, axis) * _NUMBERS
        stand_ins[entry.name] = partial(_stand_in, first, count, entry.shape, axis)
        first += count
    return stand_ins


def _stand_in(first: int, count: int, shape: tuple[int, ...], axis: Axis) -> torch.Tensor:
    lines = torch.arange(first, first + count).reshape(*shape[: Axis.ROWS], shape[axis], _NUMBERS)
    return lines if axis is Axis.ROWS else lines.mT.contiguous()


def _shortened_model(skeleton: Skeleton) -> Any:
    """Stands in for the model where an operation asks for the shape of a parameter.

    A parameter has lines of `_NUMBERS`, as the stand-ins have. So a stand-in and a parameter have equal shapes if, and
    for rows only if, their true shapes are equal. An operation that takes columns for the parameter's form of the same
    tensor gives no whole lines, and the group is converted in memory.
    """

    def get_parameter(name: str) -> torch.Tensor:
        return torch.empty((*skeleton.model.get_parameter(name).shape[:-1], _NUMBERS), device="meta")

    return SimpleNamespace(get_parameter=get_parameter)


def _segments(lines: Lines, line_counts: Sequence[int], matrix_rows: int) -> list[list[Segment]]:
    """Converts line numbers into as few segments as possible, matrix by matrix."""
    first_lines = np.cumsum([0, *line_counts])
    sources = _sources(lines, first_lines)
    breaks = (np.diff(lines) != 1) | (np.diff(sources) != 0)
    breaks[matrix_rows - 1 :: matrix_rows] = True  # a segment ends with its matrix
    matrices: list[list[Segment]] = [[] for _ in range(len(lines) // matrix_rows)]
    for begin, end in pairwise((0, *(np.flatnonzero(breaks) + 1).tolist(), len(lines))):
        source = int(sources[begin])
        matrices[begin // matrix_rows].append(Segment(source, int(lines[begin] - first_lines[source]), end - begin))
    return matrices


def _sources(lines: Lines, first_lines: Lines) -> Lines:
    """Returns the index of the source of each line."""
    sources: Lines = np.searchsorted(first_lines, lines, side="right") - 1
    return sources


def _line_count(entry: TensorEntry, axis: Axis) -> int:
    return prod(entry.shape[: Axis.ROWS]) * entry.shape[axis] if len(entry.shape) > 1 else prod(entry.shape[:-1])


def _check_dtype(entry: TensorEntry) -> None:
    if entry.dtype != "BF16" and entry.dtype not in CAST_DTYPES:
        raise UnsupportedModel(
            f"routed tensor {entry.name!r} has dtype {entry.dtype}, as only quantised checkpoints have it; "
            f"BF16 is packed, and {', '.join(CAST_DTYPES)} are cast to it",
            next_step=UNQUANTISED,
        )


def _apart(parameter: str, target: str) -> tuple[tuple[str, str], ...]:
    """Tells which of a conversion's results a parameter is, the same in every layer."""
    return tuple((a, b) for a, b in zip(parameter.split("."), target.split("."), strict=False) if a != b)
