"""Randomised marking."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from zipmoe.residency.policies.base import Bools, Floats, Policy, lowest
from zipmoe.residency.pools import Grid, Phase, Pool


class _Marks:
    """The marks of one pool, and in which order those without one go."""

    def __init__(self, size: int, seed: int) -> None:
        self.marked: Bools = np.zeros(size, bool)
        self._seed = seed
        self._phase = 0
        self.order: Floats = np.random.default_rng([seed, 0]).random(size)

    def next_phase(self) -> None:
        """Takes all marks away."""
        self._phase += 1
        self.marked[:] = False
        # Pools draw alike, so that E-chunks and SM-chunks of one expert go together where their pools are of one size.
        self.order = np.random.default_rng([self._seed, self._phase]).random(len(self.marked))


class MarkingPolicy(Policy):
    """Marks whoever is used, and loses an unmarked one at random; when all are marked, all marks go.

    No randomised policy has a better competitive ratio by more than a factor of two: it is O(log k) for k slots.
    Source: Fiat, Karp, Luby, McGeoch, Sleator, Young, Competitive paging algorithms, 1991.
    """

    name = "marking"
    ranks_chunks_alike = False

    def __init__(self, grid: Grid, *, seed: int = 0) -> None:
        super().__init__(grid, seed=seed)
        self._pools = {pool: _Marks(grid.size, seed) for pool in Pool}

    @override
    def used(self, layer: int, rows: Mapping[int, int], phase: Phase) -> None:
        base = layer * self.grid.expert_count
        indices = [base + expert for expert in rows]
        for marks in self._pools.values():
            marks.marked[indices] = True

    @override
    def victims(self, pool: Pool, candidates: Bools, count: int) -> list[int]:
        marks = self._pools[pool]
        chosen = lowest(marks.order + marks.marked, candidates, count)
        if any(marks.marked[index] for index in chosen):
            # With the last unmarked one the phase has ended: the others are those of the next.
            unmarked = [index for index in chosen if not marks.marked[index]]
            marks.next_phase()
            left = candidates.copy()
            left[unmarked] = False
            chosen = unmarked + lowest(marks.order, left, len(chosen) - len(unmarked))
        return chosen

    @override
    def promotes(self, index: int, victim: int) -> bool:
        return not self._pools[Pool.TENSOR].marked[victim]
