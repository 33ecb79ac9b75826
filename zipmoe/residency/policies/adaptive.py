"""The default policy, not from the paper: keeps the experts that are forecast to be used most and soonest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from zipmoe.residency.policies.base import Bools, Floats, Policy, lowest
from zipmoe.residency.policies.likely_uses import LikelyUses
from zipmoe.residency.pools import Grid, Phase, Pool

#: Factor by which an expert's expected hits have to exceed the victim's for a recovery to pay.
PROMOTION_GAIN = 1.5
#: Half-life of the average of how often a step passes a layer. Only prefills pass an encoder's layers.
_PASSES_HALF_LIFE_STEPS = 32.0


class AdaptivePolicy(Policy):
    """Evicts the expert with the fewest expected hits per layer pass for which the slot is held.

    Layers are passed in turn, so an expert of layer m cannot be needed before d more layer passes, where d is the
    distance from the running layer to m. The slot is held for d passes and brings a hit with the forecast probability
    p, so the lowest p / d is evicted first. Experts of a layer that was just passed make room for experts of the next
    layers, whereas LRU would evict the experts that are needed soonest. Experts that were used only once go early.

    A prefill touches nearly all experts, whichever experts the next tokens will use. So in a prefill an expert may only
    take the slot of an expert with a lower forecast. Other experts become transient.
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
            # A prefill counts no more selections than the latest decode step, since all its tokens are of one prompt.
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
