"""Types that all parts of ZipMoE share: keys of experts, parts of experts, references to slots."""

from __future__ import annotations

import enum
from typing import NamedTuple


class ExpertKey(NamedTuple):
    """Key of a routed expert of a model.

    `layer` is the ordinal of the Mixture-of-Experts layer in forward order, from 0 (dense layers are not counted);
    `expert` is the id that the layer's gate uses, from 0.
    """

    layer: int
    expert: int

    def __str__(self) -> str:
        return f"expert {self.expert} of MoE layer {self.layer}"


class Part(enum.IntFlag):
    """A set of an expert's parts: exponents (E), sign and mantissa (SM), both or none."""

    NONE = 0
    E = 1
    SM = 2
    ALL = 3


class SlotRef(NamedTuple):
    """A reference to one use of an arena slot.

    A reference is stale as soon as the slot's generation has grown or the owner has restarted.
    """

    owner_id: str
    arena_epoch: int
    slot: int
    generation: int

    def __str__(self) -> str:
        return f"slot {self.slot} generation {self.generation} of {self.owner_id}"
