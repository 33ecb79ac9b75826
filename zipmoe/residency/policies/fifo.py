"""Eviction in the order in which slots were assigned (first in, first out)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from zipmoe.residency.policies.base import Bools, Floats, Policy, lowest
from zipmoe.residency.pools import Grid, Phase, Pool


class FifoPolicy(Policy):
    """Evicts the expert that was assigned a slot first, regardless of later uses."""

    name = "fifo"
    ranks_chunks_alike = False

    def __init__(self, grid: Grid, *, seed: int = 0) -> None:
        super().__init__(grid, seed=seed)
        self._order: dict[Pool, Floats] = {pool: np.zeros(grid.size) for pool in Pool}
        self._placed = 0

    @override
    def used(self, layer: int, rows: Mapping[int, int], phase: Phase) -> None:
        pass

    @override
    def placed(self, pool: Pool, index: int) -> None:
        self._placed += 1
        self._order[pool][index] = self._placed

    @override
    def victims(self, pool: Pool, candidates: Bools, count: int) -> list[int]:
        return lowest(self._order[pool], candidates, count)

    @override
    def promotes(self, index: int, victim: int) -> bool:
        return True
