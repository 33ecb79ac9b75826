"""Randomised marking."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from zipmoe.residency.policies.base import Bools, Policy, lowest
from zipmoe.residency.pools import Grid, Phase, Pool


class MarkingPolicy(Policy):
    """Marks whoever is used, and loses an unmarked one at random; when all are marked, all marks go.

    No randomised policy has a better competitive ratio by more than a factor of two: it is O(log k) for k slots.
    Source: Fiat, Karp, Luby, McGeoch, Sleator, Young, Competitive paging algorithms, 1991.
    """

    name = "marking"

    def __init__(self, grid: Grid, *, seed: int = 0) -> None:
        super().__init__(grid, seed=seed)
        self._random = np.random.default_rng(seed)
        self._marks: dict[Pool, Bools] = {pool: np.zeros(grid.size, bool) for pool in Pool}

    @override
    def used(self, layer: int, rows: Mapping[int, int], phase: Phase) -> None:
        base = layer * self.grid.expert_count
        indices = [base + expert for expert in rows]
        for marks in self._marks.values():
            marks[indices] = True

    @override
    def victims(self, pool: Pool, candidates: Bools, count: int) -> list[int]:
        marks = self._marks[pool]
        unmarked = int((candidates & ~marks).sum())
        order = self._random.random(self.grid.size)
        if unmarked >= count:
            return lowest(order + marks, candidates, count)
        # The phase ends within this call: those that were still unmarked go first, then any.
        chosen = lowest(order + marks, candidates, count)
        marks[:] = False
        return chosen

    @override
    def promotes(self, index: int, victim: int) -> bool:
        return not self._marks[Pool.TENSOR][victim]
