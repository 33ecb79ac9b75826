"""Belady's optimal policy, which knows the future: an upper bound on hits for the simulator and the benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from typing_extensions import override

from zipmoe.residency.policies.base import Floats, ScoredPolicy
from zipmoe.residency.pools import Grid, Phase, Pool

NEVER = np.inf


class BeladyPolicy(ScoredPolicy):
    """Evicts the expert with the most distant next use by a decode step.

    Uses by prefills do not count, because the simulator compares policies by the misses of decode steps.

    Source: Belady, A study of replacement algorithms for a virtual-storage computer, 1966.
    """

    name = "belady"

    def __init__(self, grid: Grid, passes: Iterable[tuple[int, Sequence[int], Phase]]) -> None:
        """Computes the next use of every expert from the future passes.

        Args:
            grid: the experts of the model.
            passes: (layer, experts, phase) of every future `used`, in order.
        """
        super().__init__(grid)
        following: Floats = np.full(grid.size, NEVER)
        self._next_use: list[Floats] = []
        for when, (layer, experts, phase) in reversed(list(enumerate(passes))):
            indices = layer * grid.expert_count + np.asarray(experts)
            self._next_use.append(following[indices])
            if phase is Phase.DECODE:
                following[indices] = when
        self.scores = -following

    @override
    def used(self, layer: int, rows: Mapping[int, int], phase: Phase) -> None:
        base = layer * self.grid.expert_count
        self.scores[[base + expert for expert in rows]] = -self._next_use.pop()
        self.selective = phase is Phase.PREFILL

    @override
    def admits(self, pool: Pool, index: int, victim: int) -> bool:
        return bool(self.scores[index] > self.scores[victim])
