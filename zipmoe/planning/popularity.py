"""How often a step uses each expert: running statistics with decay, and whether they have shifted.

Two averages run side by side. The long one is what plans are made from; the recent one forgets faster, and where the
two differ by more than chance, what is popular has shifted. Before the first step all experts are equally popular.

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


class Routed(Protocol):
    """One layer of one step, as traces record it."""

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
    """How often each expert of each layer is used.

    It is meant for decode steps: a prefill uses nearly every expert once, which tells nothing about the next token.

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
            expert_counts: experts of each MoE layer.
            half_life_steps: steps after which a use counts half in the long average.
            recent_half_life_steps: the same of the recent one; less than that.
            prior_steps: how many steps' worth of evidence the equal start is.

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
        """Notes that a decode step used these distinct experts of a layer.

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

    def seed(self, trace: Iterable[Routed]) -> None:
        """Learns from a recorded trace, oldest step first; prefills are left out."""
        for entry in trace:
            if entry.phase == "decode":
                self.used(entry.layer, entry.experts)

    def steps_seen(self, layer: int) -> float:
        """Steps' worth of evidence in a layer's long average, at most about 1.44 half-lives."""
        return self._averages[LONG][layer].evidence

    def chosen(self, layer: int, otherwise: int) -> int:
        """Distinct experts that a step uses on average, rounded, at least 1; `otherwise` before the first step."""
        average = self._averages[LONG][layer]
        chosen = round(average.chosen_a_step) if average.evidence else otherwise
        return min(self.expert_counts[layer], max(1, chosen))

    def inclusion(self, layer: int, chosen: int) -> Floats:
        """Computes each expert's probability to be among the `chosen` of a step.

        Args:
            layer: the layer.
            chosen: experts of a step, 1 to the layer's.

        Returns:
            Float64, shape (experts,), in (0, 1]; sums to `chosen`. All 1 where `chosen` is all of them.
        """
        count = self.expert_counts[layer]
        if not 1 <= chosen <= count:
            raise InvalidRequest(f"a step uses 1 to {count} experts of layer {layer}, not {chosen}")
        if chosen == count:
            return np.ones(count)
        rates = self._averages[LONG][layer].rates(self._prior_steps, chosen / count)
        return scale_to_sum(rates, chosen)

    def ranked(self) -> list[ExpertKey]:
        """Lists all experts, the most used first; of those that are equal, the first ones of every layer first."""
        uses: dict[ExpertKey, float] = {}
        for layer, count in enumerate(self.expert_counts):
            rates = self._averages[LONG][layer].rates(self._prior_steps, self.chosen(layer, 1) / count)
            uses.update((ExpertKey(layer, expert), rate) for expert, rate in enumerate(rates.tolist()))
        return sorted(uses, key=lambda key: (-uses[key], key.expert, key.layer))

    def shifted_layers(self) -> list[int]:
        """Lists layers whose recent uses differ from the long average by more than chance.

        Were they averages of one steady, memoryless choice, the squared differences, each over its variance, would be
        about chi-squared with n - 1 degrees of freedom; a layer is listed six standard deviations above that mean.
        """
        return [layer for layer in range(len(self.expert_counts)) if self._has_shifted(layer)]

    def adopt_recent(self, layers: Iterable[int]) -> None:
        """Forgets what was before the recent past of some layers: the long average goes on from the recent one."""
        for layer in layers:
            long, recent = (averages[layer] for averages in self._averages)
            long.restore(recent.to_plain())

    def to_plain(self) -> dict[str, object]:
        """As plain data, for JSON."""
        return {
            "format": _FORMAT,
            **dict(zip(_SETTINGS, (*self._half_lives, self._prior_steps), strict=True)),
            "averages": [[average.to_plain() for average in averages] for averages in self._averages],
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, object]) -> Popularity:
        """Reads what `to_plain` gave.

        Raises:
            InvalidRequest: the data is of another form, or holds a number that no run gives.
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
        # The floor: with experts that are hardly ever used, a single use would look like a shift.
        spread = np.maximum(rates * (1 - rates), 1 - fast)
        distance = float(((recent.rates() - rates) ** 2 / spread).sum() / variance)
        freedom = len(rates) - 1
        return distance > freedom + 6 * math.sqrt(2 * freedom)


def scale_to_sum(rates: Floats, total: float) -> Floats:
    """Scales rates above 0 to a sum below their number, holding each below 1: no expert is certain to be used.

    Those that would come out too high are held, and the others take up the rest.
    """
    most = max(_MOST, (1 + total / len(rates)) / 2)
    scaled: Floats = rates * (total / rates.sum())
    held = np.zeros(len(rates), dtype=np.bool_)
    while (scaled > most).any():
        held |= scaled >= most
        scaled[held] = most
        scaled[~held] *= (total - most * held.sum()) / scaled[~held].sum()
    return scaled
