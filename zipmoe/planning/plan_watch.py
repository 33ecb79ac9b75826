"""When to plan anew while serving: as soon as enough is known, and whenever what is popular has shifted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from zipmoe.planning.plan import PlanRequest
from zipmoe.planning.popularity import Popularity

CHECK_STEPS = 32
"""Steps between two looks at the statistics."""

ENOUGH_STEPS = 64
"""Evidence at which the first plan from statistics is worth making; after that whenever it has doubled."""


class PlanWatch:
    """Watches which experts decode steps use, and says what to plan for when a new plan is due.

    It does not plan by itself: a plan takes up to a second, which belongs on another thread than the model's.

    Thread: not thread safe; one thread, the model's, owns it.
    """

    def __init__(self, popularity: Popularity, request: PlanRequest, layers: Sequence[int]) -> None:
        """Begins with a plan for `request` in force.

        Args:
            popularity: what is known so far; learns from here on.
            request: what the plan in force was made for.
            layers: the MoE layer that each entry of its `inclusion` is of.
        """
        self.popularity = popularity
        self._request = request
        self._layers = tuple(layers)
        self._steps_to_check = CHECK_STEPS
        self._enough_steps = max(ENOUGH_STEPS, 2 * self._evidence())

    def used(self, layer: int, experts: Sequence[int]) -> None:
        """Notes the experts that a decode step used of a layer; raises InvalidRequest as `Popularity.used`."""
        self.popularity.used(layer, experts)

    def step_ended(self) -> PlanRequest | None:
        """Notes the end of a decode step.

        Returns:
            What to plan for, if a new plan is due. Layers that have shifted are planned from their recent past alone.

        Cost: nothing but a count, except every `CHECK_STEPS` steps: 20 microseconds a layer.
        """
        self._steps_to_check -= 1
        if self._steps_to_check > 0:
            return None
        self._steps_to_check = CHECK_STEPS
        shifted = [layer for layer in self.popularity.shifted_layers() if layer in self._layers]
        evidence = self._evidence()
        if not shifted and evidence < self._enough_steps:
            return None
        self.popularity.adopt_recent(shifted)
        self._enough_steps = max(ENOUGH_STEPS, 2 * evidence)
        inclusion = [
            self.popularity.inclusion(layer, self.popularity.chosen(layer, round(float(before.sum()))))
            for layer, before in zip(self._layers, self._request.inclusion, strict=True)
        ]
        self._request = replace(self._request, inclusion=inclusion)
        return self._request

    def _evidence(self) -> float:
        return min((self.popularity.steps_seen(layer) for layer in self._layers), default=0.0)
