"""Weights that nobody has to download: what training leaves behind, and two ways in which models depart from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from zipmoe.bench.matrix import Matrix, MatrixSample

Floats = NDArray[np.float32]

_DEVIATION = np.float32(0.02)
_SCALE_DEVIATION = 1.0
_DEGREES_OF_FREEDOM = 3


def _gaussian(generator: np.random.Generator, rows: int, cols: int) -> Floats:
    weights: Floats = generator.standard_normal((rows, cols), dtype=np.float32)
    weights *= _DEVIATION
    return weights


def _row_scaled(generator: np.random.Generator, rows: int, cols: int) -> Floats:
    weights = _gaussian(generator, rows, cols)
    scales = np.exp(generator.standard_normal((rows, 1), dtype=np.float32) * np.float32(_SCALE_DEVIATION))
    weights *= scales
    return weights


def _heavy_tailed(generator: np.random.Generator, rows: int, cols: int) -> Floats:
    weights: Floats = generator.standard_t(_DEGREES_OF_FREEDOM, (rows, cols)).astype(np.float32)
    weights *= _DEVIATION
    return weights


_KINDS: Mapping[str, Callable[[np.random.Generator, int, int], Floats]] = {
    "gaussian": _gaussian,
    "row-scaled": _row_scaled,
    "heavy-tailed": _heavy_tailed,
}


def kind_names() -> tuple[str, ...]:
    """The kinds that `synthesise` knows."""
    return tuple(_KINDS)


def synthesise(kind: str, matrix_count: int, rows: int, cols: int) -> MatrixSample:
    """Makes matrices, always the same ones.

    Args:
        kind: "gaussian", weights ~ N(0, 0.02); "row-scaled", each row of those times its own factor exp(N(0, 1));
            or "heavy-tailed", Student's t with 3 degrees of freedom times 0.02.
        matrix_count: how many.
        rows: of each.
        cols: of each.
    """
    generator = np.random.default_rng(1)
    matrices = tuple(Matrix(rows, cols, rounded(_KINDS[kind](generator, rows, cols))) for _ in range(matrix_count))
    return MatrixSample(kind, matrices)


def rounded(weights: Floats) -> memoryview:
    """Rounds to bf16, to nearest and ties to even, as little-endian bytes. For finite weights."""
    bits = np.ascontiguousarray(weights, np.float32).reshape(-1).view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return memoryview((nearest >> np.uint32(16)).astype("<u2").tobytes())
