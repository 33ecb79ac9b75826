"""Draws queries, keys and values on which a different summation order or attention function gives different bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

DRAWN_TOKENS = 64
"""Tokens that are drawn. A context repeats them in random order; drawing millions of numbers would take seconds."""

ALL_LENGTHS_UP_TO = 64
MANY_LENGTHS_UP_TO, MANY = 512, 32
SOME_LENGTHS_UP_TO, SOME = 4096, 11
FEW = 3
"""Evenly spaced lengths that are tested among longer contexts; a test takes tens of milliseconds."""

FEW_TOKENS = 16
"""Longest context that always needs all draws: so few pairs of cancelling tokens tell little."""

LARGE = 2.0**12
"""Size of queries and keys with cancelling products. The scores that remain, about 1, are rounding errors."""

TINY = 2.0**-126
"""Size of values with subnormal products, which some code takes for zero."""


@dataclass(frozen=True)
class Heads:
    """Numbers of heads of an attention, and lengths of their vectors."""

    heads: int
    """Heads of keys and values."""

    groups: int
    """Query heads that share a head of keys and values."""

    key_numbers: int
    value_numbers: int

    @property
    def queries(self) -> int:
        """Number of query heads."""
        return self.heads * self.groups


Drawn = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Query (1, query heads, 1, numbers), keys (heads, tokens, numbers), values (heads, tokens, numbers)."""


def lengths_to_test(size: int) -> list[int]:
    """Returns sample lengths of more than 2**(size - 1) and up to 2**size tokens, which stand for the whole range.

    If torch changes its algorithm at a length of the range, that length is one of the ends, or the samples disagree and
    no method is trusted. Up to 512 tokens the samples have every residue modulo 32.
    """
    first, last = (1 << size >> 1) + 1, 1 << size
    if last <= ALL_LENGTHS_UP_TO:
        return list(range(min(first, last), last + 1))
    count = MANY if last <= MANY_LENGTHS_UP_TO else SOME if last <= SOME_LENGTHS_UP_TO else FEW
    step = (last - first) // count | 1  # odd, so that residues differ
    return sorted({*(first + i * step for i in range(count)), first + 1, last - 1, last})


def ordinary(heads: Heads, tokens: int) -> Drawn:
    """Draws scores from about -10 to 10, on which a cap or an added term shows."""
    query, keys, values, index = _base(heads, tokens)
    return query * 4, keys[:, index], values[:, index]


def cancelling_scores(heads: Heads, tokens: int) -> Drawn:
    """Draws scores that are 0 apart from the rounding of partial sums."""
    query, keys, values, index = _base(heads, tokens)
    _cancel_scores(query, keys)
    return query * LARGE, keys[:, index] * LARGE, values[:, index]


def cancelling(heads: Heads, tokens: int) -> Drawn:
    """Draws as `cancelling_scores`; the values of token pairs with equal weights cancel as well."""
    query, keys, values, index = _base(heads, tokens)
    _cancel_scores(query, keys)
    first, second = _halves(tokens)
    index[second] = index[first]
    values = values[:, index]
    values[:, second] = -values[:, first]
    return query * LARGE, keys[:, index] * LARGE, values


def tiny_values(heads: Heads, tokens: int) -> Drawn:
    """Draws as `cancelling`, with products that are subnormal numbers."""
    query, keys, values = cancelling(heads, tokens)
    return query, keys, values * TINY


Draw = Callable[[Heads, int], Drawn]
DRAWS: tuple[Draw, ...] = (cancelling, cancelling_scores, ordinary, tiny_values)


def draws_of(length: int, size: int) -> tuple[Draw, ...]:
    """Returns the draws for a tested length: all draws at the ends and for few tokens, else the most telling draw."""
    return DRAWS if length <= FEW_TOKENS or length in ((1 << size >> 1) + 1, 1 << size) else DRAWS[:1]


def _base(heads: Heads, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    return (
        drawn(1, heads.queries, 1, heads.key_numbers),
        drawn(heads.heads, DRAWN_TOKENS, heads.key_numbers),
        drawn(heads.heads, DRAWN_TOKENS, heads.value_numbers),
        torch.randperm(-(-tokens // DRAWN_TOKENS) * DRAWN_TOKENS, generator=generator)[:tokens] % DRAWN_TOKENS,
    )


def _cancel_scores(query: torch.Tensor, keys: torch.Tensor) -> None:
    first, second = _halves(query.shape[-1])
    query[..., second] = query[..., first]
    keys[..., second] = -keys[..., first]


def _halves(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return places[: count // 2], places[count // 2 : count // 2 * 2]
