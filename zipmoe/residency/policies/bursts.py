"""Forecasts uses of experts by a lasting share and by the odds that the prompt makes the expert hot at present.

Uses of an expert with lasting share b are modelled as Poisson. The rate is k b / Z while the expert is cold and `GAIN`
times as much while it is hot, for k selections of the layer. Z makes the shares of a layer sum to 1. So a use
multiplies the odds of being hot by GAIN, and a pass divides the odds by exp((GAIN - 1) k b / Z).

A new prompt may change all odds at once. So a second account of the odds assumes that a prompt has begun at the step
where this now seems most likely. When the second account's log-likelihood is ahead by `CHANGE_NATS`, it replaces the
first account.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from zipmoe.residency.policies.base import Floats
from zipmoe.residency.pools import Grid

#: Ratio of the rates of a hot and a cold expert, and the prior probability that an expert is hot.
GAIN = 5.0
HOT_RATIO = 0.25
#: Lead in log-likelihood at which a new prompt is assumed.
CHANGE_NATS = 10.0
#: Weight, in steps, of the even shares that lasting shares start with, and the half-life of a use in lasting shares.
PRIOR_STEPS = 200.0
LASTING_HALF_LIFE_STEPS = 8192.0

_UNKNOWN = math.log(HOT_RATIO / (1 - HOT_RATIO))
_LEAST_LOG_ODDS, _MOST_LOG_ODDS = -6.0, 12.0
_LASTING_DECAY = 0.5 ** (1 / LASTING_HALF_LIFE_STEPS)
RUNNING, NEW = 0, 1

Places = tuple[NDArray[np.int64], NDArray[np.int64]]


class Bursts:
    """Learns each expert's lasting share, and the odds that the expert is hot, from the uses of every step.

    The odds have two accounts. `RUNNING` assumes that the present prompt goes on, `NEW` that a new prompt has begun.
    The lasting shares are common to both.
    """

    def __init__(self, grid: Grid) -> None:
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
        """Forecast of the running prompt's account: float64, shape (layers, experts)."""
        running: Floats = self._shares[RUNNING]
        return running

    def once_used(self) -> Floats:
        """Returns the forecast that each expert would have after a use in the next pass."""
        hot = _hot(self._log_odds[RUNNING] + math.log(GAIN))
        once_used: Floats = self._cold_shares[RUNNING] * (1 + (GAIN - 1) * hot)
        return once_used

    def judge(self, used: Places, weights: Floats) -> float:
        """Scores both accounts by the selections of a step, and updates the lead of the new prompt's account.

        Args:
            used: layers and experts that were used.
            weights: selections of each of these experts.

        Returns:
            Log-likelihood of the selections under the forecast, in nats.
        """
        running, new = (float(np.log(shares[used]) @ weights) for shares in self._shares)
        self._ahead_nats += new - running
        return running

    def learn(self, shares: Floats, selections: Floats) -> None:
        """Updates both accounts by a step.

        Args:
            shares: float64, shape (layers, experts): shares of each layer's selections; 0 for layers that were not
                passed.
            selections: float64, shape (layers, 1): selections of each layer; 0 for layers that were not passed.
        """
        if self._ahead_nats > CHANGE_NATS:
            self._ahead_nats = 0.0
            for both in (self._log_odds, self._hot, self._cold_shares):
                both[RUNNING] = both[NEW]
        # A step with a hot expert carries as much evidence on the lasting share as GAIN steps with a cold expert.
        exposure = (1 + (GAIN - 1) * self._hot[RUNNING]) * (selections > 0)
        self._lasting_uses = self._lasting_uses * _LASTING_DECAY + shares
        self._lasting_steps = self._lasting_steps * _LASTING_DECAY + exposure
        self._log_odds += selections * (math.log(GAIN) * shares - (GAIN - 1) * self._cold_shares)
        if self._ahead_nats <= 0:
            # Without evidence for a new prompt, the most likely beginning of one is the next step.
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
