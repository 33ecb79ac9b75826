"""Forecasts uses of experts by decayed averages at several half-lives, each shrunk towards the even share."""

from __future__ import annotations

import numpy as np

from zipmoe.residency.policies.base import Bools, Floats
from zipmoe.residency.pools import Grid

#: Half-life of each average, in steps.
HALF_LIVES_STEPS = (2.0, 8.0, 32.0, 128.0, 2048.0)
#: Least shrinkage of an average, so that no expert's share is ever 0.
LEAST_PULL = 0.02
#: Weight of the latest step in the running estimate of a single pass's variance.
_VARIANCE_RATE = 0.05


class Averages:
    """Decayed averages of the experts' shares of each layer's selections.

    An average over few steps differs from the even share 1/n largely by chance. So each average is shrunk towards 1/n:
    the forecast is 1/n + (1 - pull) (average - 1/n). The pull is the fraction of the average's variance over all
    experts that chance alone explains.

    Attributes:
        shares: float64, shape (half-lives, layers, experts): the forecasts.
        gain: float64, shape (half-lives, layers, 1): growth of a forecast per unit of share in the next step.
    """

    count = len(HALF_LIVES_STEPS)

    def __init__(self, grid: Grid) -> None:
        self._even = 1 / grid.expert_count
        self._decay: Floats = 0.5 ** (1 / np.array(HALF_LIVES_STEPS)).reshape(-1, 1, 1)
        self._uses: Floats = np.zeros((self.count, *grid))
        self._steps: Floats = np.zeros((self.count, grid.layer_count, 1))
        self._squared_steps: Floats = self._steps.copy()
        self._variance = 0.0
        self.shares: Floats = np.full((self.count, *grid), self._even)
        self.gain: Floats = np.ones_like(self._steps)

    def learn(self, shares: Floats, passed: Bools) -> None:
        """Updates the forecasts by a step.

        Args:
            shares: float64, shape (layers, experts): shares of each layer's selections; 0 for layers that were not
                passed.
            passed: bool, shape (layers, 1): whether the step passed each layer.
        """
        decay = np.where(passed, self._decay, 1.0)
        self._uses *= decay
        self._uses += shares
        self._steps = self._steps * decay + passed
        self._squared_steps = self._squared_steps * decay**2 + passed
        steps = np.maximum(self._steps, 1e-9)
        variance = float((shares**2).sum()) / float(passed.sum()) * self._even - self._even**2
        self._variance += _VARIANCE_RATE * (variance - self._variance) if self._variance else variance
        differences = self._uses / steps - self._even
        spread = np.einsum("hle,hle->h", differences, differences) / shares.size
        chance = self._variance * (self._squared_steps / steps**2).mean(axis=(1, 2))
        pull = np.clip(chance / np.maximum(spread, 1e-12), LEAST_PULL, 1 - LEAST_PULL).reshape(-1, 1, 1)
        differences *= 1 - pull
        differences += self._even
        # A layer that was never passed has even shares.
        self.shares = np.where(self._steps > 0, differences, self._even)
        self.gain = (1 - pull) / (self._steps * self._decay + 1)
