"""How often each expert was used, as decayed averages at several half-lives, as far as they are more than chance."""

from __future__ import annotations

import numpy as np

from zipmoe.residency.policies.base import Bools, Floats
from zipmoe.residency.pools import Grid

#: Steps after which a use counts half, one for each average.
HALF_LIVES_STEPS = (2.0, 8.0, 32.0, 128.0, 2048.0)
#: An average is always pulled in a little, so that no expert's share is ever 0.
LEAST_PULL = 0.02
#: How fast the variance of a single pass is followed.
_VARIANCE_RATE = 0.05


class Averages:
    """Decayed averages of the experts' shares of each layer's selections.

    An average over few steps differs from 1/n largely by chance. So it is pulled in by the part of its variance over
    all experts that chance alone would give it: the forecast is 1/n + (1 - pull) (average - 1/n).

    Attributes:
        shares: float64, shape (half-lives, layers, experts): the forecasts.
        gain: float64, shape (half-lives, layers, 1): by how much a forecast will grow for a whole share.
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
        """Learns from a step.

        Args:
            shares: float64, shape (layers, experts): of each layer's selections; 0 throughout where it was not passed.
            passed: bool, shape (layers, 1).
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
        # A layer that was never passed is nothing but even.
        self.shares = np.where(self._steps > 0, differences, self._even)
        self.gain = (1 - pull) / (self._steps * self._decay + 1)
