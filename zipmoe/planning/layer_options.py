"""Evaluates a layer's options, from which a plan chooses: experts in each residency state, and the expected time.

Within a layer, residency states are assigned by popularity. The most popular experts are FULL, the next are PACKED,
then SM_ONLY, then E_ONLY, and the rest are ABSENT. An option is a choice of the four cuts between the states. The
expected time of an option is the mean of `layer_seconds` over the joint distribution of hits per state:

    E[T] = sum over counts (f, p, s, e, a) of  T(f, p, s, e, a) * prod over states of  P(count heads among its coins)
           / P(k heads among all coins)

The sum is contracted one state at a time, so that thousands of options cost about as much as a single direct sum.

Source: ZipMoE (arXiv 2601.21198), hierarchical cache planning: hit distribution by convolution, expected makespan.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zipmoe.planning.conditional_poisson import Floats, coins, heads

MAX_CUTS = 12
"""Places at which a ranking may be cut. With fewer experts, every place is used. With 20 places, planned steps
are 0.2 % faster."""


class LayerOptions(NamedTuple):
    """Options of a layer, one per row.

    Attributes:
        counts: int64, shape (m, 4): number of experts in each of the first four states.
        seconds: float64, shape (m,): expected makespan.
        hits: float64, shape (m, 5): expected number of chosen experts in each state.
    """

    counts: NDArray[np.int64]
    seconds: Floats
    hits: Floats


def cut_places(expert_count: int) -> NDArray[np.int64]:
    """Spreads at most `MAX_CUTS` places over 0 .. `expert_count`, both included, closer among the popular experts."""
    if expert_count < MAX_CUTS:
        return np.arange(expert_count + 1)
    return np.unique((np.linspace(0, 1, MAX_CUTS) ** 1.5 * expert_count).round().astype(np.int64))


def layer_options(weights: Floats, inclusion: Floats, table: Floats, places: NDArray[np.int64]) -> LayerOptions:
    """Evaluates every option that cuts the ranking at the given places.

    Args:
        weights: float64, shape (n,): weights of the layer's conditional Poisson design, most popular expert first.
        inclusion: float64, shape (n,): inclusion probability of each expert, in the same order.
        table: float64, shape (k + 1,) * 4: seconds by number of chosen experts in each of the first four states. The
            remaining chosen experts are ABSENT. Entries with more than k experts are 0.
        places: int64, ascending; the first place is 0.

    Returns:
        The options, in no particular order.

    Cost: O(g^2 (k + 1)^4 + g^4 (k + 1)^2) for g places: 10 ms for 12 places and k = 4.
    """
    chosen = table.shape[0] - 1
    p = coins(weights)
    between = _heads_between(p, places, chosen)
    after = np.stack([heads(p[place:], chosen) for place in places])
    rest = chosen - np.indices(table.shape).sum(axis=0)
    # The count of ABSENT follows from the other counts. Each einsum then contracts one state. Letters a, b, c, d: cuts.
    e_only = after[:, np.maximum(rest, 0)] * np.where(rest >= 0, table, 0.0)
    sm_only = np.einsum("cdw,dxyzw->cdxyz", between, e_only, optimize=True)
    packed = np.einsum("bcz,cdxyz->bcdxy", between, sm_only, optimize=True)
    full = np.einsum("aby,bcdxy->abcdx", between, packed, optimize=True)
    seconds = np.einsum("ax,abcdx->abcd", between[0], full, optimize=True) / heads(p, chosen)[chosen]
    cuts = np.indices(seconds.shape).reshape(4, -1)
    ordered = (np.diff(cuts, axis=0) >= 0).all(axis=0)
    at = places[cuts[:, ordered]].T
    below = np.concatenate([[0.0], np.cumsum(inclusion)])
    hits = np.diff(below[at], axis=1, prepend=0.0, append=below[-1])
    return LayerOptions(np.diff(at, axis=1, prepend=0), seconds.reshape(-1)[ordered], hits)


def _heads_between(p: Floats, places: NDArray[np.int64], most: int) -> Floats:
    """Computes the distributions of heads among the coins between every two places.

    A distribution is all 0 where the first place is the higher.
    """
    count = len(places)
    result = np.zeros((count, count, most + 1))
    for first in range(count):
        here = np.zeros(most + 1)
        here[0] = 1.0
        result[first, first] = here
        for second in range(first + 1, count):
            here = np.convolve(here, heads(p[places[second - 1] : places[second]], most))[: most + 1]
            result[first, second] = here
    return result
