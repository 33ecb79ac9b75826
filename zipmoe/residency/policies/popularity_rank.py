"""The paper's policy: ranks the experts of each layer by popularity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from zipmoe.residency.policies.base import Floats, ScoredPolicy
from zipmoe.residency.pools import Grid, Phase


class RankPolicy(ScoredPolicy):
    """Evicts the expert with the lowest rank in its layer's ranking by popularity.

    Popularity is the number of passes that activated the expert so far. Ranks, not counts, are compared across layers.
    So every layer keeps about the same number of experts, and these are its most popular ones.
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
        # The fraction breaks ties in favour of recently used experts. It never adds up to an activation.
        experts = list(rows)
        popularity[experts] = np.floor(popularity[experts]) + 1 + self._passes * 1e-12
        base = layer * self.grid.expert_count
        self.scores[base + popularity.argsort()] = np.arange(self.grid.expert_count)
