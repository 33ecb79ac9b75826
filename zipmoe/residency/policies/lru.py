"""Eviction of the least recently used expert."""

from __future__ import annotations

from collections.abc import Mapping

from typing_extensions import override

from zipmoe.residency.policies.base import ScoredPolicy
from zipmoe.residency.pools import Grid, Phase


class LruPolicy(ScoredPolicy):
    """Evicts the expert with the oldest last use. The experts of a pass count as used at the same time."""

    name = "lru"

    def __init__(self, grid: Grid, *, seed: int = 0) -> None:
        super().__init__(grid, seed=seed)
        self._passes = 0

    @override
    def used(self, layer: int, rows: Mapping[int, int], phase: Phase) -> None:
        self._passes += 1
        base = layer * self.grid.expert_count
        self.scores[[base + expert for expert in rows]] = self._passes
