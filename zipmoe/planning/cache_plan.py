"""What should be resident, and what a step is expected to take then: the result of planning."""

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
    """What one layer's experts should hold.

    Attributes:
        residency: of each expert.
        seconds: expected time from the gate's choice to the last expert's output.
        hits: experts of a step that are expected to be found in each state; they add up to the experts of a step.
    """

    residency: tuple[Residency, ...]
    seconds: float
    hits: dict[Residency, float]


@dataclass(frozen=True)
class CachePlan:
    """What should be resident, and what a step is expected to take then.

    Attributes:
        layers: in forward order.
        slots: of each pool, the window included.
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
        """Of all experts that a step uses, the share that is expected to be found in each state."""
        total = sum(sum(layer.hits.values()) for layer in self.layers)
        return {state: sum(layer.hits[state] for layer in self.layers) / total for state in STATES}

    @cached_property
    def expert_counts(self) -> dict[Residency, int]:
        """Experts in each state."""
        return {state: sum(layer.residency.count(state) for layer in self.layers) for state in STATES}
