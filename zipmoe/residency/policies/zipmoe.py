"""The paper's: rank by popularity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from zipmoe.residency.policies.base import Floats, ScoredPolicy
from zipmoe.residency.pools import Grid, Phase


class RankPolicy(ScoredPolicy):
    """Loses whoever stands lowest in its layer's ranking by popularity, which is how often it was activated so far.

    Ranks, not counts, are compared across layers: every layer keeps about as many experts, and its most popular ones.
    Source: ZipMoE (arXiv 2601.21198), rank-based cache management.
    """

    name = "zipmoe"

    def __init__(self, grid: Grid, *, seed: int = 0) -> None:
        super().__init__(grid, seed=seed)
        self._passes = 0
        self._popularity: Floats = np.zeros(grid)

    @override
    def used(self, layer: int, rows: Mapping[int, int], phase: Phase) -> None:
        self._passes += 1
        popularity = self._popularity[layer]
        # The fraction breaks ties in favour of the recently used; it never adds up to an activation.
        experts = list(rows)
        popularity[experts] = np.floor(popularity[experts]) + 1 + self._passes * 1e-12
        base = layer * self.grid.expert_count
        self.scores[base + popularity.argsort()] = np.arange(self.grid.expert_count)
