"""The two orders of sums over tokens in numpy; scores are linears, whose twin is next door."""

from __future__ import annotations

import numpy as np

from tests.kernels.linear_twin import Bf16, Floats, round_to_bf16, widen
from tests.kernels.linear_twin import linear as linear_twin
from zipmoe.kernels.attention import ValueOrder
from zipmoe.kernels.linear import Order, pairs


def scores(query: Bf16, keys: Bf16, order: Order, scaling: float) -> Floats:
    """Of one query head: query (numbers,), keys (tokens, numbers)."""
    numbers = len(query)
    whole = pairs(-(-numbers // 32) * 32) if order.number else order
    products = widen(linear_twin(query[None], keys, whole)[0])
    return widen(round_to_bf16(products * np.float32(scaling)))


def values(weights: Floats, values: Bf16, order: ValueOrder) -> Bf16:
    """Of one query head: weights (tokens,), values (tokens, numbers)."""
    products = widen(round_to_bf16(weights))[:, None] * widen(values)
    return round_to_bf16(_in_pairs(products, order.block) if order.number else _in_fours(products))


def _in_fours(products: Floats) -> Floats:
    sums = np.zeros((4, products.shape[1]), np.float32)
    whole = len(products) // 4 * 4
    for token, product in enumerate(products):
        sums[token % 4 if token < whole else 0] += product
    total: Floats = sums[0] + sums[1] + sums[2] + sums[3]
    return total


def _in_pairs(products: Floats, block: int) -> Floats:
    total = np.zeros(products.shape[1], np.float32)
    for begin in range(0, len(products), block):
        end = min(begin + block, len(products))
        part = np.zeros(products.shape[1], np.float32)
        for token in range(begin, end, 2):
            if token + 1 < end:
                part = part + products[token + 1]
            part = part + products[token]
        total = part if begin == 0 else total + part
    return total
