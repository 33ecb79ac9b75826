"""Randomised marking, an eviction policy with a proven competitive ratio."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from zipmoe.residency.policies.base import Bools, Floats, Policy, lowest
from zipmoe.residency.pools import Grid, Phase, Pool


class _Marks:
    """Marks of a pool's experts, and a random order for the eviction of unmarked experts."""

    def __init__(self, size: int, seed: int) -> None:
        self.marked: Bools = np.zeros(size, bool)
        self._seed = seed
        self._phase = 0
        self.order: Floats = np.random.default_rng([seed, 0]).random(size)

    def next_phase(self) -> None:
        """Clears all marks and draws a new random order."""
        self._phase += 1
        self.marked[:] = False
        # All pools use the same seed, so that pools of equal size evict E-chunks and SM-chunks of an expert together.
        self.order = np.random.default_rng([self._seed, self._phase]).random(len(self.marked))


class MarkingPolicy(Policy):
    """Marks used experts and evicts a random unmarked expert. When all candidates are marked, all marks are cleared.

    The competitive ratio is O(log k) for k slots. No randomised policy improves the ratio by more than a factor of two.
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
            # The unmarked candidates are used up, which ends the phase. The other victims come from the next phase.
            unmarked = [index for index in chosen if not marks.marked[index]]
            marks.next_phase()
            left = candidates.copy()
            left[unmarked] = False
            chosen = unmarked + lowest(marks.order, left, len(chosen) - len(unmarked))
        return chosen

    @override
    def promotes(self, index: int, victim: int) -> bool:
        return not self._pools[Pool.TENSOR].marked[victim]
