"""Counts how often decode steps use each expert, with decay, and detects shifts of popularity.

Two averages run side by side. Plans are made from the long average. The recent average forgets faster. Popularity has
shifted where the two averages differ by more than chance. Before the first step all experts are equally popular.

    rate_i = (c_i + m k / n) / (W + m)      c_i: decayed uses, W: decayed steps, m: `prior_steps`, k / n: the prior
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from zipmoe.errors import InvalidRequest
from zipmoe.planning.conditional_poisson import Floats
from zipmoe.planning.decayed_uses import DecayedUses
from zipmoe.types import ExpertKey

LONG, RECENT = 0, 1
_MOST = 0.999
_FORMAT = "zipmoe-popularity"
_SETTINGS = ("half_life_steps", "recent_half_life_steps", "prior_steps")


class TraceEntry(Protocol):
    """Entry of a routing trace: the experts that a step used in a layer."""

    @property
    def layer(self) -> int:
        """Ordinal of the MoE layer, from 0."""

    @property
    def phase(self) -> str:
        """`prefill` or `decode`."""

    @property
    def experts(self) -> Sequence[int]:
        """The distinct experts that the step used."""


class Popularity:
    """Statistics of how often decode steps use each expert of each layer.

    Prefills should not be counted. A prefill uses nearly every expert once, which tells nothing about the next token.

    Thread: not thread safe.
    """

    def __init__(
        self,
        expert_counts: Sequence[int],
        *,
        half_life_steps: float = 256,
        recent_half_life_steps: float = 32,
        prior_steps: float = 8,
    ) -> None:
        """Starts with all experts of a layer equally popular.

        Args:
            expert_counts: number of experts of each MoE layer.
            half_life_steps: steps after which a use counts half in the long average.
            recent_half_life_steps: the same for the recent average; less than `half_life_steps`.
            prior_steps: weight of the equal start, in steps of evidence.

        Raises:
            InvalidRequest: a number is out of range.
        """
        if not expert_counts or min(expert_counts) < 1:
            raise InvalidRequest(f"expert counts are {list(expert_counts)}, expected at least one layer of at least 1")
        if not (0 < recent_half_life_steps < half_life_steps < math.inf and 0 < prior_steps < math.inf):
            raise InvalidRequest(
                f"half-lives are {half_life_steps} and {recent_half_life_steps} steps, the prior {prior_steps}: "
                "expected 0 < recent < long and a prior above 0"
            )
        self.expert_counts = tuple(expert_counts)
        self._half_lives = (half_life_steps, recent_half_life_steps)
        self._prior_steps = prior_steps
        self._decays = tuple(0.5 ** (1 / steps) for steps in self._half_lives)
        self._averages = [[DecayedUses(count, decay) for count in expert_counts] for decay in self._decays]

    def used(self, layer: int, experts: Sequence[int]) -> None:
        """Counts the distinct experts of a layer that a decode step used.

        Raises:
            InvalidRequest: there is no such layer or expert.

        Cost: some microseconds.
        """
        if not 0 <= layer < len(self.expert_counts):
            raise InvalidRequest(f"layer {layer} is not one of {len(self.expert_counts)}")
        if experts and not 0 <= min(experts) <= max(experts) < self.expert_counts[layer]:
            raise InvalidRequest(f"layer {layer} has experts 0 to {self.expert_counts[layer] - 1}, got {list(experts)}")
        for averages in self._averages:
            averages[layer].use(experts)

    def seed(self, trace: Iterable[TraceEntry]) -> None:
        """Counts the decode steps of a recorded trace, oldest step first. Prefills are left out."""
        for entry in trace:
            if entry.phase == "decode":
                self.used(entry.layer, entry.experts)

    def steps_seen(self, layer: int) -> float:
        """Returns the evidence in a layer's long average, in steps; at most about 1.44 half-lives."""
        return self._averages[LONG][layer].evidence

    def chosen(self, layer: int, otherwise: int) -> int:
        """Returns the average number of distinct experts of a step, rounded, at least 1.

        Before the first step the result is `otherwise`.
        """
        average = self._averages[LONG][layer]
        chosen = round(average.chosen_a_step) if average.evidence else otherwise
        return min(self.expert_counts[layer], max(1, chosen))

    def inclusion(self, layer: int, chosen: int) -> Floats:
        """Computes each expert's inclusion probability: the probability of being used by a step.

        Args:
            layer: the layer.
            chosen: number of experts of a step, 1 to the number of experts of the layer.

        Returns:
            Float64, shape (experts,), in (0, 1]; sums to `chosen`. All 1 where a step uses all experts.

        Raises:
            InvalidRequest: `chosen` is out of range.
        """
        count = self.expert_counts[layer]
        if not 1 <= chosen <= count:
            raise InvalidRequest(f"a step uses 1 to {count} experts of layer {layer}, not {chosen}")
        if chosen == count:
            return np.ones(count)
        rates = self._averages[LONG][layer].rates(self._prior_steps, chosen / count)
        return scale_to_sum(rates, chosen)

    def ranked(self) -> list[ExpertKey]:
        """Lists all experts, most used first. Equally used experts are ordered by expert id, then by layer."""
        uses: dict[ExpertKey, float] = {}
        for layer, count in enumerate(self.expert_counts):
            rates = self._averages[LONG][layer].rates(self._prior_steps, self.chosen(layer, 1) / count)
            uses.update((ExpertKey(layer, expert), rate) for expert, rate in enumerate(rates.tolist()))
        return sorted(uses, key=lambda key: (-uses[key], key.expert, key.layer))

    def shifted_layers(self) -> list[int]:
        """Lists the layers with recent uses that differ from the long average by more than chance.

        If both were averages of one steady, memoryless choice, the sum of the squared differences, each divided by the
        variance, would be about chi-squared with n - 1 degrees of freedom. A layer is listed when the sum is more than
        six standard deviations above the mean of that distribution.
        """
        return [layer for layer in range(len(self.expert_counts)) if self._has_shifted(layer)]

    def adopt_recent(self, layers: Iterable[int]) -> None:
        """Replaces the long average of some layers by the recent average, so that older uses are forgotten."""
        for layer in layers:
            long, recent = (averages[layer] for averages in self._averages)
            long.restore(recent.to_plain())

    def to_plain(self) -> dict[str, object]:
        """Returns the statistics as plain data, for JSON."""
        return {
            "format": _FORMAT,
            **dict(zip(_SETTINGS, (*self._half_lives, self._prior_steps), strict=True)),
            "averages": [[average.to_plain() for average in averages] for averages in self._averages],
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, object]) -> Popularity:
        """Reads the result of `to_plain`.

        Raises:
            InvalidRequest: the data has another form, or holds a number out of range.
        """
        try:
            if data["format"] != _FORMAT:
                raise InvalidRequest(f"popularity is of the format {data['format']!r}, expected {_FORMAT!r}")
            settings = {name: float(data[name]) for name in _SETTINGS}  # type: ignore[arg-type]
            both: Any = data["averages"]
            result = cls([len(average["counts"]) for average in both[LONG]], **settings)
            for averages, saved in zip(result._averages, both, strict=True):
                for average, values in zip(averages, saved, strict=True):
                    average.restore(values)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InvalidRequest(f"popularity is not readable: {type(error).__name__}: {error}") from error
        return result

    def _has_shifted(self, layer: int) -> bool:
        long, recent = (averages[layer] for averages in self._averages)
        if long.evidence < 2 * self._half_lives[RECENT] or not recent.evidence:
            return False
        slow, fast = self._decays
        # Variance of the difference of two exponential averages of the same independent values of variance 1.
        variance = (1 - slow) / (1 + slow) + (1 - fast) / (1 + fast) - 2 * (1 - slow) * (1 - fast) / (1 - slow * fast)
        rates = long.rates()
        # Without the lower bound, a single use of a hardly ever used expert would look like a shift.
        spread = np.maximum(rates * (1 - rates), 1 - fast)
        distance = float(((recent.rates() - rates) ** 2 / spread).sum() / variance)
        freedom = len(rates) - 1
        return distance > freedom + 6 * math.sqrt(2 * freedom)


def scale_to_sum(rates: Floats, total: float) -> Floats:
    """Scales positive rates to a given sum and keeps each rate below 1, so that no expert is certain to be used.

    `total` must be below the number of rates. Rates that would exceed the limit are held at the limit, and the other
    rates take up the rest.
    """
    most = max(_MOST, (1 + total / len(rates)) / 2)
    scaled: Floats = rates * (total / rates.sum())
    held = np.zeros(len(rates), dtype=np.bool_)
    while (scaled > most).any():
        held |= scaled >= most
        scaled[held] = most
        scaled[~held] *= (total - most * held.sum()) / scaled[~held].sum()
    return scaled
