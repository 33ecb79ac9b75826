"""Queries, keys and values on which another summation order, or another attention function, gives other bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

DRAWN_TOKENS = 64
"""Tokens that are drawn; a context repeats them in any order: drawing millions of numbers would take seconds."""

ALL_LENGTHS_UP_TO = 64
MANY_LENGTHS_UP_TO, MANY = 512, 32
SOME_LENGTHS_UP_TO, SOME = 4096, 11
FEW = 3
"""Of longer contexts few lengths are tested: one takes tens of milliseconds."""

FEW_TOKENS = 16
"""Of so few tokens the pairs that cancel say little."""

LARGE = 2.0**12
"""Queries and keys of this size whose products cancel leave scores of about 1: what was rounded off."""

TINY = 2.0**-126
"""Values of this size have products that are subnormal numbers, which some code takes for zero."""


@dataclass(frozen=True)
class Heads:
    """Heads of an attention, and the numbers of each."""

    heads: int
    """Of keys and values."""

    groups: int
    """Query heads that share one of them."""

    key_numbers: int
    value_numbers: int

    @property
    def queries(self) -> int:
        """Query heads."""
        return self.heads * self.groups


Drawn = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Query (1, query heads, 1, numbers), keys (heads, tokens, numbers), values (heads, tokens, numbers)."""


def lengths_to_test(size: int) -> list[int]:
    """Lengths of more than 2**(size - 1) and up to 2**size tokens that stand for all of those.

    Where torch changes its way at a length, that is one of the ends, or else the lengths differ among themselves and
    none is trusted. Up to 512 tokens there are lengths of every residue modulo 32.
    """
    first, last = (1 << size >> 1) + 1, 1 << size
    if last <= ALL_LENGTHS_UP_TO:
        return list(range(min(first, last), last + 1))
    count = MANY if last <= MANY_LENGTHS_UP_TO else SOME if last <= SOME_LENGTHS_UP_TO else FEW
    step = (last - first) // count | 1  # odd, so that residues differ
    return sorted({*(first + i * step for i in range(count)), first + 1, last - 1, last})


def ordinary(heads: Heads, tokens: int) -> Drawn:
    """Scores from about -10 to 10: what caps them, or adds to them, shows."""
    query, keys, values, index = _base(heads, tokens)
    return query * 4, keys[:, index], values[:, index]


def cancelling_scores(heads: Heads, tokens: int) -> Drawn:
    """Scores that are 0 but for the rounding of partial sums."""
    query, keys, values, index = _base(heads, tokens)
    _cancel_scores(query, keys)
    return query * LARGE, keys[:, index] * LARGE, values[:, index]


def cancelling(heads: Heads, tokens: int) -> Drawn:
    """As `cancelling_scores`, and the values of pairs of tokens, which have the same weight, cancel as well."""
    query, keys, values, index = _base(heads, tokens)
    _cancel_scores(query, keys)
    first, second = _halves(tokens)
    index[second] = index[first]
    values = values[:, index]
    values[:, second] = -values[:, first]
    return query * LARGE, keys[:, index] * LARGE, values


def tiny_values(heads: Heads, tokens: int) -> Drawn:
    """As `cancelling`, with products that are subnormal numbers."""
    query, keys, values = cancelling(heads, tokens)
    return query, keys, values * TINY


Draw = Callable[[Heads, int], Drawn]
DRAWS: tuple[Draw, ...] = (cancelling, cancelling_scores, ordinary, tiny_values)


def draws_of(length: int, size: int) -> tuple[Draw, ...]:
    """What is drawn for one of the tested lengths: all at the ends and where tokens are few, else what tells most."""
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
