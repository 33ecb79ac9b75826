"""The nouns that every part of the system shares."""

from __future__ import annotations

import enum
from typing import NamedTuple


class ExpertKey(NamedTuple):
    """One routed expert of a model.

    `layer` is the ordinal of the Mixture-of-Experts layer in forward order, from 0 (dense layers are not counted);
    `expert` is the id that the layer's gate uses, from 0.
    """

    layer: int
    expert: int

    def __str__(self) -> str:
        return f"expert {self.expert} of MoE layer {self.layer}"


class Part(enum.IntFlag):
    """Which chunks of an expert: a set, as it travels in `parts` of the internal protocol."""

    NONE = 0
    E = 1
    SM = 2
    ALL = 3


class SlotRef(NamedTuple):
    """One use of one arena slot; stale as soon as the slot's generation has grown or its owner has restarted."""

    owner_id: str
    arena_epoch: int
    slot: int
    generation: int

    def __str__(self) -> str:
        return f"slot {self.slot} generation {self.generation} of {self.owner_id}"
