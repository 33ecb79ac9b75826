"""Weights that look like trained ones to a codec: normally distributed bf16, fast, the same for a seed everywhere.

A value is the quantile of 16 random bits, looked up in a table: no transcendental function a weight, so about
1 GB/s a core, and a result that depends on nothing but the seed, the tensor's name and the place in it.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import xxhash

BLOCK_WEIGHTS = 1 << 22
"""Weights that are drawn at once; every block has a generator of its own, so blocks can be made in parallel."""

_QUANTILES = 1 << 16


def normal_block(
    seed: int, name: str, block: int, count: int, std: float, dtype: str
) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    """Draws one block of a tensor.

    Args:
        seed: of the checkpoint, at least 0.
        name: of the tensor.
        block: number of the block in the tensor.
        count: weights wanted, at most `BLOCK_WEIGHTS`.
        std: standard deviation; values reach 4.3 times as far.
        dtype: "BF16" or "F32".

    Returns:
        The weights: bf16 patterns as uint16, or float32; shape (count,).

    Thread: any; blocks do not share state.
    """
    sequence = np.random.SeedSequence([seed, xxhash.xxh3_64_intdigest(name.encode()), block])
    words = np.random.SFC64(sequence).random_raw(-(-count // 4))
    return _table(std, dtype)[words.view(np.uint16)[:count]]


def one(dtype: str) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    """The weight 1.0 in a dtype, shape (1,)."""
    return _encode(np.ones(1, np.float32), dtype)


@lru_cache(maxsize=1)
def _quantiles() -> npt.NDArray[np.float64]:
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / _QUANTILES) for i in range(_QUANTILES)])


@lru_cache(maxsize=64)
def _table(std: float, dtype: str) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    return _encode((_quantiles() * std).astype(np.float32), dtype)


def _encode(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    if dtype == "F32":
        return values
    bits = values.view(np.uint32)
    # round to nearest even, as torch does
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
