"""Draws weights that a codec compresses like trained weights: normally distributed, reproducible from a seed.

A value is the quantile of 16 random bits, read from a table. Without a transcendental function per weight, a core draws
about 1 GB/s. The result depends on the seed, the tensor's name and the place in the tensor alone.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import xxhash

BLOCK_WEIGHTS = 1 << 22
"""Weights of a block. Every block has its own generator, so that threads can draw blocks in parallel."""

_QUANTILES = 1 << 16


def normal_block(
    seed: int, name: str, block: int, count: int, std: float, dtype: str
) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    """Draws one block of a tensor.

    Args:
        seed: seed of the checkpoint, at least 0.
        name: name of the tensor.
        block: number of the block in the tensor.
        count: number of weights, at most `BLOCK_WEIGHTS`.
        std: standard deviation; the largest values are 4.3 times as large.
        dtype: "BF16" or "F32".

    Returns:
        The weights: bf16 patterns as uint16, or float32; shape (count,).

    Thread: any; blocks do not share state.
    """
    sequence = np.random.SeedSequence([seed, xxhash.xxh3_64_intdigest(name.encode()), block])
    words = np.random.SFC64(sequence).random_raw(-(-count // 4))
    return _table(std, dtype)[words.view(np.uint16)[:count]]


def one(dtype: str) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    """Returns the weight 1.0 in a dtype, shape (1,)."""
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
