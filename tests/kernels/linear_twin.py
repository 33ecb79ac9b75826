"""The two summation orders of linears in numpy, and inputs on which every other order gives other bits."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from zipmoe.kernels.linear import Order

Bf16 = NDArray[np.uint16]
Floats = NDArray[np.float32]


def widen(bf16: Bf16) -> Floats:
    return (bf16.astype(np.uint32) << 16).view(np.float32)


def round_to_bf16(values: Floats) -> Bf16:
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def fold(lanes: Floats) -> Floats:
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def linear(x: Bf16, weight: Bf16, order: Order, bias: Bf16 | None = None) -> Bf16:
    """What the kernels have to give; products of two bf16 numbers are exact in fp32 unless they are tiny or huge."""
    products = widen(x)[:, None, :] * widen(weight)[None, :, :]
    sums = _in_parts(products, order) if order.number else _in_lanes(products)
    return round_to_bf16(sums if bias is None else sums + widen(bias))


def _in_lanes(products: Floats) -> Floats:
    *shape, k = products.shape
    lanes, tail = np.zeros((*shape, 64), np.float32), np.zeros((*shape, 8), np.float32)
    for begin in range(0, k - 63, 64):
        lanes = lanes + products[..., begin : begin + 64]
    for begin in range(k // 64 * 64, k // 16 * 16, 8):
        tail = tail + products[..., begin : begin + 8]
    sums = fold(lanes) + fold(tail)
    for i in range(k // 16 * 16, k):
        sums = sums + products[..., i]
    return sums


def _in_parts(products: Floats, order: Order) -> Floats:
    k = products.shape[-1]
    part = math.ceil(math.ceil(k / order.k_block) / order.parts) * order.k_block
    each = [_in_pairs(products[..., begin : begin + part], order.k_block) for begin in range(0, k, part)]
    return functools.reduce(np.add, each)


def _in_pairs(products: Floats, k_block: int) -> Floats:
    *shape, k = products.shape
    sums = np.zeros(shape, np.float32)
    for begin in range(0, k, k_block):
        block = np.zeros(shape, np.float32)
        for i in range(begin, min(begin + k_block, k), 2):
            if i + 1 < k:
                block = block + products[..., i + 1]
            block = block + products[..., i]
        sums = block if begin == 0 else sums + block
    return sums


def cancelling(m: int, n: int, k: int) -> tuple[Bf16, Bf16]:
    """Inputs and weights whose products cancel exactly: what is left is the rounding, and that is the order's own."""
    generator = np.random.default_rng([m, n, k])
    x = round_to_bf16(generator.standard_normal((m, k), np.float32))
    weight = round_to_bf16(generator.standard_normal((n, k), np.float32))
    places = generator.permutation(k)
    first, second = places[: k // 2], places[k // 2 : k // 2 * 2]
    x[:, second] = x[:, first]
    weight[:, second] = weight[:, first] ^ 0x8000
    return x, weight


def special(m: int, n: int, k: int) -> tuple[Bf16, Bf16]:
    """Rows with infinities, NaNs, zeros of both signs, subnormal, tiny and huge numbers, a row for each kind."""
    generator = np.random.default_rng([m, n, k, 1])
    x, weight = (round_to_bf16(generator.standard_normal((rows, k), np.float32)) for rows in (m, n))
    for rows in (x, weight):
        for index, row in enumerate(rows):
            some = generator.integers(0, k, 1 + k // 8)
            match index % 8:
                case 1:
                    row[some[0]] = 0x7F80
                case 2:
                    row[some[0]] = 0x7FC1
                case 3:
                    row[some] = generator.choice(np.array([0, 0x8000], np.uint16), some.shape)
                case 4:
                    row[some] = generator.integers(1, 0x80, some.shape)  # subnormal
                case 5:
                    row[:] = row & 0x807F | 0x1E00  # about 2**-67: products are subnormal, sums nearly
                case 6:
                    row[:] = row & 0x807F | 0x5E80  # about 2**62: products overflow
                case 7:
                    row[:] = 0x8000
    return x, weight


def of_every_kind(k: int) -> Bf16:
    """Weights whose blocks of 16 rows are compressed in every way that cascade has, with exceptions in some."""
    rng = np.random.default_rng(3)
    plain = rng.standard_normal((48, k), dtype=np.float32)
    rare = plain[:16] * np.where(rng.random((16, k)) < 0.005, np.float32(2.0**-40), np.float32(1))
    scaled = plain[16:32] * np.float32(2.0) ** rng.integers(-30, 30, (16, 1)).astype(np.float32)
    spread = plain[32:] * np.float32(2.0) ** rng.integers(-30, 30, (16, k)).astype(np.float32)
    return round_to_bf16(np.concatenate([rare, scaled, spread]))
