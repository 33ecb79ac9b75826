"""Decides when to plan again while serving: when enough decode steps are counted, and when popularity has shifted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from zipmoe.planning.plan import PlanRequest
from zipmoe.planning.popularity import Popularity

CHECK_STEPS = 32
"""Decode steps between two checks of the statistics."""

ENOUGH_STEPS = 64
"""Evidence, in steps, at which the first plan is made from statistics. Later plans follow when evidence has doubled."""


class PlanWatch:
    """Watches the experts that decode steps use, and returns a plan request when a new plan is due.

    `PlanWatch` does not make the plan. A plan takes up to a second and belongs on another thread than the model's.

    Thread: not thread safe; one thread, the model's, owns it and the popularity.
    """

    def __init__(self, popularity: Popularity, request: PlanRequest, layers: Sequence[int]) -> None:
        """Begins with a plan for `request` in force.

        Args:
            popularity: use statistics, which the caller updates by every decode step.
            request: the inputs of the plan in force.
            layers: the MoE layer of each entry of `request.inclusion`.
        """
        self._popularity = popularity
        self._request = request
        self._layers = tuple(layers)
        self._steps_to_check = CHECK_STEPS
        self._enough_steps = max(ENOUGH_STEPS, 2 * self._evidence())

    def step_ended(self) -> PlanRequest | None:
        """Counts a decode step, and checks every `CHECK_STEPS` steps whether a new plan is due.

        Returns:
            The request for a new plan if a plan is due, else None. Layers with shifted popularity are planned from the
            recent average alone.

        Cost: a decrement; every `CHECK_STEPS` steps also 20 microseconds a layer.
        """
        self._steps_to_check -= 1
        if self._steps_to_check > 0:
            return None
        self._steps_to_check = CHECK_STEPS
        shifted = [layer for layer in self._popularity.shifted_layers() if layer in self._layers]
        evidence = self._evidence()
        if not shifted and evidence < self._enough_steps:
            return None
        self._popularity.adopt_recent(shifted)
        self._enough_steps = max(ENOUGH_STEPS, 2 * evidence)
        inclusion = [
            self._popularity.inclusion(layer, self._popularity.chosen(layer, round(float(before.sum()))))
            for layer, before in zip(self._layers, self._request.inclusion, strict=True)
        ]
        self._request = replace(self._request, inclusion=inclusion)
        return self._request

    def _evidence(self) -> float:
        return min((self._popularity.steps_seen(layer) for layer in self._layers), default=0.0)
