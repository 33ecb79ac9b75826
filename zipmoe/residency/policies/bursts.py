"""Experts that a prompt makes hot: a lasting share each, and the odds that it is several times that for now.

Uses of an expert with lasting share b are taken to be Poisson with rate k b / Z while it is cold and `GAIN` times that
while it is hot, for k selections of the layer; Z makes the shares of a layer sum to 1. So a use multiplies the odds of
being hot by GAIN, and a pass divides them by exp((GAIN - 1) k b / Z).

A new prompt may change all of that at once. So the same is also computed as if a prompt had begun where that now seems
most likely; when this account is ahead by `CHANGE_NATS`, it replaces the other one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from zipmoe.residency.policies.base import Floats
from zipmoe.residency.pools import Grid

#: How many times as likely a hot expert is, and how many are taken to be hot before anything is known.
GAIN = 5.0
HOT_RATIO = 0.25
#: Evidence that takes a new prompt for granted.
CHANGE_NATS = 10.0
#: Steps' worth of equal shares that lasting shares start with, and after how many steps a use counts half in them.
PRIOR_STEPS = 200.0
LASTING_HALF_LIFE_STEPS = 8192.0

_UNKNOWN = math.log(HOT_RATIO / (1 - HOT_RATIO))
_LEAST_LOG_ODDS, _MOST_LOG_ODDS = -6.0, 12.0
_LASTING_DECAY = 0.5 ** (1 / LASTING_HALF_LIFE_STEPS)
RUNNING, NEW = 0, 1

Places = tuple[NDArray[np.int64], NDArray[np.int64]]


class Bursts:
    """Lasting shares and bursts of all layers, as the running prompt has it and as a new one would.

    Attributes:
        changes: how often a new prompt was noticed.
    """

    def __init__(self, grid: Grid) -> None:
        self.changes = 0
        self._ahead_nats = 0.0
        self._selections: Floats = np.ones((grid.layer_count, 1))
        self._lasting_uses: Floats = np.full(grid, PRIOR_STEPS / grid.expert_count)
        self._lasting_steps: Floats = np.full(grid, PRIOR_STEPS)
        self._log_odds: Floats = np.full((2, *grid), _UNKNOWN)
        self._hot: Floats = np.full((2, *grid), HOT_RATIO)
        self._shares: Floats = np.full((2, *grid), 1 / grid.expert_count)
        self._cold_shares: Floats = self._shares / (1 + (GAIN - 1) * HOT_RATIO)

    @property
    def shares(self) -> Floats:
        """The forecast: float64, shape (layers, experts)."""
        running: Floats = self._shares[RUNNING]
        return running

    def once_used(self) -> Floats:
        """What the forecast of each expert would be once it is used in the next pass."""
        hot = _hot(self._log_odds[RUNNING] + math.log(GAIN))
        once_used: Floats = self._cold_shares[RUNNING] * (1 + (GAIN - 1) * hot)
        return once_used

    def judge(self, used: Places, weights: Floats) -> float:
        """Scores the forecast by the selections of a step, and notes whether a new prompt would have foreseen them.

        Args:
            used: layers and experts that were used.
            weights: selections that fell on each.

        Returns:
            Nats.
        """
        running, new = (float(np.log(shares[used]) @ weights) for shares in self._shares)
        self._ahead_nats += new - running
        return running

    def learn(self, shares: Floats, selections: Floats) -> None:
        """Learns from a step.

        Args:
            shares: float64, shape (layers, experts): of each layer's selections; 0 throughout where it was not passed.
            selections: float64, shape (layers, 1): how many there were; 0 where the layer was not passed.
        """
        if self._ahead_nats > CHANGE_NATS:
            self.changes += 1
            self._ahead_nats = 0.0
            for both in (self._log_odds, self._hot, self._cold_shares):
                both[RUNNING] = both[NEW]
        # A step of a hot expert tells as much of its lasting share as GAIN steps of a cold one.
        exposure = (1 + (GAIN - 1) * self._hot[RUNNING]) * (selections > 0)
        self._lasting_uses = self._lasting_uses * _LASTING_DECAY + shares
        self._lasting_steps = self._lasting_steps * _LASTING_DECAY + exposure
        self._log_odds += selections * (math.log(GAIN) * shares - (GAIN - 1) * self._cold_shares)
        if self._ahead_nats <= 0:
            # Nothing speaks for a new prompt: were there one, it would begin with the next step.
            self._ahead_nats = 0.0
            self._log_odds[NEW] = _UNKNOWN
        np.clip(self._log_odds, _LEAST_LOG_ODDS, _MOST_LOG_ODDS, out=self._log_odds)
        self._hot = _hot(self._log_odds)
        lasting = self._lasting_uses / self._lasting_steps
        rates = lasting * (1 + (GAIN - 1) * self._hot)
        total = rates.sum(axis=2, keepdims=True)
        self._shares = rates / total
        self._cold_shares = lasting / total


def _hot(log_odds: Floats) -> Floats:
    hot: Floats = 1 / (1 + np.exp(-log_odds))
    return hot
