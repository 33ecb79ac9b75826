"""Least frequently used."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from zipmoe.residency.policies.base import Floats, ScoredPolicy
from zipmoe.residency.pools import Grid, Phase


class LfuPolicy(ScoredPolicy):
    """Loses whoever was used in the fewest passes so far, resident or not; of equals, who was not used for longest.

    Counts are kept of all experts for ever ("perfect" LFU): where popularity never shifts, no policy that learns it
    from the uses does better for long.
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
