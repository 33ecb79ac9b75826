"""Generates weights: Gaussian as after training, and two kinds of deviation that models show."""

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
    """Returns the kinds of weights that `synthesise` accepts."""
    return tuple(_KINDS)


def synthesise(kind: str, matrix_count: int, rows: int, cols: int) -> MatrixSample:
    """Generates matrices, the same at every call.

    Args:
        kind: "gaussian", weights ~ N(0, 0.02); "row-scaled", each row of those times a random factor exp(N(0, 1));
            or "heavy-tailed", Student's t with 3 degrees of freedom times 0.02.
        matrix_count: number of matrices.
        rows: rows of each matrix.
        cols: columns of each matrix.
    """
    generator = np.random.default_rng(1)
    matrices = tuple(Matrix(rows, cols, rounded(_KINDS[kind](generator, rows, cols))) for _ in range(matrix_count))
    return MatrixSample(kind, matrices)


def rounded(weights: Floats) -> memoryview:
    """Rounds finite weights to bf16, to nearest with ties to even, and returns little-endian bytes."""
    bits = np.ascontiguousarray(weights, np.float32).reshape(-1).view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return memoryview((nearest >> np.uint32(16)).astype("<u2").tobytes())
