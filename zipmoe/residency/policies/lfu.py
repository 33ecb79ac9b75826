"""Eviction of the least frequently used expert."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from zipmoe.residency.policies.base import Floats, ScoredPolicy
from zipmoe.residency.pools import Grid, Phase


class LfuPolicy(ScoredPolicy):
    """Evicts the expert that was used in the fewest passes, and the least recently used among equal counts.

    Counts cover all experts, resident or not, and never decay ("perfect" LFU). Where popularity never shifts, no policy
    that learns popularity from the uses does better in the long run.
    """

    name = "lfu"

    def __init__(self, grid: Grid, *, seed: int = 0) -> None:
        super().__init__(grid, seed=seed)
        self._passes = 0
        self._uses: Floats = np.zeros(grid.size)

    @override
    def used(self, layer: int, rows: Mapping[int, int], phase: Phase) -> None:
        self._passes += 1
        base = layer * self.grid.expert_count
        indices = [base + expert for expert in rows]
        self._uses[indices] += 1
        self.scores[indices] = self._uses[indices] + self._passes * 1e-12
