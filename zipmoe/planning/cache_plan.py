"""Cache plan, the result of planning: residency states of all experts, slots of each pool, expected time of a step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from zipmoe.planning.layer_time import STATES, ExpertBytes
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.residency.state import Residency

SLOTS_OF = {
    Residency.FULL: PoolSizes(0, 0, 1),
    Residency.PACKED: PoolSizes(1, 1, 0),
    Residency.SM_ONLY: PoolSizes(0, 1, 0),
    Residency.E_ONLY: PoolSizes(1, 0, 0),
    Residency.ABSENT: PoolSizes(0, 0, 0),
}
"""The slots that an expert in a state occupies."""


@dataclass(frozen=True)
class LayerPlan:
    """Planned residency states of a layer's experts, with the expected time and hits of a step.

    Attributes:
        residency: planned state of each expert.
        seconds: expected time from the gate's choice to the last expert's output.
        hits: expected number of a step's experts in each state; the numbers add up to the experts of a step.
    """

    residency: tuple[Residency, ...]
    seconds: float
    hits: dict[Residency, float]


@dataclass(frozen=True)
class CachePlan:
    """Result of planning: the residency states of all experts and the slots of each pool.

    Attributes:
        layers: plans of the MoE layers, in forward order.
        slots: slots of each pool, including the transient window.
        slot_bytes: bytes of a slot of each pool.
        expert: bytes of one expert.
    """

    layers: tuple[LayerPlan, ...]
    slots: PoolSizes
    slot_bytes: PoolSizes
    expert: ExpertBytes

    @cached_property
    def seconds(self) -> float:
        """Expected time of the routed experts of a step, over all layers."""
        return sum(layer.seconds for layer in self.layers)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self.slots.nbytes(self.slot_bytes)

    @cached_property
    def read_bytes(self) -> float:
        """Expected bytes that a step reads."""
        return sum(hits * self.expert.missing(state) for layer in self.layers for state, hits in layer.hits.items())

    @cached_property
    def hit_rates(self) -> dict[Residency, float]:
        """Expected share of a step's experts in each state, over all layers."""
        total = sum(sum(layer.hits.values()) for layer in self.layers)
        return {state: sum(layer.hits[state] for layer in self.layers) / total for state in STATES}

    @cached_property
    def expert_counts(self) -> dict[Residency, int]:
        """Number of experts in each state, over all layers."""
        return {state: sum(layer.residency.count(state) for layer in self.layers) for state in STATES}
