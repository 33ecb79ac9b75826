"""Ours, and the default: keep what the forecast gives most, of those that are equal what is needed soonest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from zipmoe.residency.policies.base import Bools, Floats, Policy, lowest
from zipmoe.residency.policies.likely_uses import LikelyUses
from zipmoe.residency.pools import Grid, Phase, Pool

#: How many times as likely an expert has to be for a recovery to be worth its while.
PROMOTION_GAIN = 1.5
#: Steps over which it is averaged how often a layer is passed: an encoder's layers are passed by prefills alone.
_PASSES_HALF_LIFE_STEPS = 32.0


class AdaptivePolicy(Policy):
    """Loses whoever brings the fewest hits for the time that its slot is held until it can be needed again.

    Layers are passed in turn, so an expert of layer m can be needed again after d passes, the distance from the running
    layer to m, and not before. Its slot is held for d passes to bring a hit with the probability p that the forecast
    gives it: the lowest p / d goes first. That leaves the slots of experts that have just been passed over to those
    that come, where LRU would evict whom it is about to need, and lets what was fetched only once go first.

    A prefill touches nearly all experts, whatever the next tokens use. So it may only take the slot of an expert that
    the forecast gives less; others are served through transient slots.
    """

    name = "adaptive"

    def __init__(self, grid: Grid, *, seed: int = 0) -> None:
        super().__init__(grid, seed=seed)
        self.likely = LikelyUses(grid)
        self._layer = -1
        self._step_selections = 1.0
        self._passes: Floats = np.zeros(grid.layer_count)
        self._often: Floats = np.ones(grid.layer_count)
        layers = np.arange(grid.layer_count)
        self._inverse_distance: Floats = 1 / ((layers - layers[:, None] - 1) % grid.layer_count + 1)
        self._worth: Floats = self._inverse_distance[0]

    @override
    def used(self, layer: int, rows: Mapping[int, int], phase: Phase) -> None:
        if layer <= self._layer or (phase is Phase.PREFILL) != self.selective:
            self._end_step()
            self.selective = phase is Phase.PREFILL
        self._layer = layer
        self._passes[layer] = 1.0
        self._worth = self._inverse_distance[layer] * self._often
        selections = float(sum(rows.values()))
        parts = [tokens / selections for tokens in rows.values()]
        if self.selective:
            # A prefill is one step, however many tokens it reads: they are those of one prompt.
            selections = min(selections, self._step_selections)
        else:
            self._step_selections = selections
        self.likely.note(layer, list(rows), parts, selections)

    @override
    def victims(self, pool: Pool, candidates: Bools, count: int) -> list[int]:
        return lowest((self.likely.shares * self._worth[:, None]).ravel(), candidates, count)

    @override
    def admits(self, pool: Pool, index: int, victim: int) -> bool:
        return not self.selective or self._hits(index) > self._hits(victim)

    @override
    def promotes(self, index: int, victim: int) -> bool:
        return self._hits(index) > PROMOTION_GAIN * self._hits(victim)

    def _hits(self, index: int) -> float:
        layer, expert = divmod(index, self.grid.expert_count)
        return float(self.likely.shares[layer, expert] * self._often[layer])

    def _end_step(self) -> None:
        self.likely.learn(judge=not self.selective)
        self._often += (1 - 0.5 ** (1 / _PASSES_HALF_LIFE_STEPS)) * (self._passes - self._often)
        np.maximum(self._often, 1e-6, out=self._often)
        self._passes[:] = 0.0
