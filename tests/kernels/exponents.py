"""Exponent planes of every kind that the codecs' kernels are tested on; always the same ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping


def _weights(rng: random.Random, exponent: int) -> int:
    """The exponent of a normally distributed weight, nearly."""
    return max(0, exponent - min(int(rng.expovariate(0.7)), 60)) + (rng.random() < 0.1)


def like_weights(count: int, rng: random.Random) -> bytes:
    return bytes(_weights(rng, 120) for _ in range(count))


def row_scaled(count: int, rng: random.Random) -> bytes:
    return bytes(_weights(rng, 80 + 29 * (index // 64) % 80) for index in range(count))


def pruned(count: int, rng: random.Random) -> bytes:
    return bytes(0 if rng.random() < 0.4 else _weights(rng, 120) for _ in range(count))


def wrapping(count: int, rng: random.Random) -> bytes:
    return bytes((_weights(rng, 10) - 12) & 0xFF for _ in range(count))


def few_scattered(count: int, rng: random.Random) -> bytes:
    return bytes(rng.choice((1, 2, 9, 20, 77, 200, 255)) for _ in range(count))


def constant(count: int, rng: random.Random) -> bytes:
    return bytes([rng.randrange(256)]) * count


def deep(count: int, rng: random.Random) -> bytes:
    """Level 5 and exceptions everywhere: 17 exponents, far apart."""
    return bytes(15 * min(int(rng.expovariate(0.3)), 16) for _ in range(count))


def uniform(count: int, rng: random.Random) -> bytes:
    return rng.randbytes(count)


PLANES: Mapping[str, Callable[[int, random.Random], bytes]] = {
    kind.__name__: kind for kind in (like_weights, row_scaled, pruned, wrapping, few_scattered, constant, deep, uniform)
}


def plane(kind: str, count: int) -> bytes:
    return PLANES[kind](count, random.Random(f"{kind} {count}"))
