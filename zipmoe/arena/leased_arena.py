"""An arena together with the leases on its slots."""

from __future__ import annotations

from typing import NamedTuple

from zipmoe.arena.arena import Arena
from zipmoe.arena.lease import SlotTable


class LeasedArena(NamedTuple):
    """What the owner of an arena has: the memory, and who uses which slot of it."""

    arena: Arena
    slots: SlotTable

    @classmethod
    def of(cls, arena: Arena) -> LeasedArena:
        """An arena of which nothing is leased yet."""
        return cls(arena, SlotTable(arena.owner_id, arena.epoch, arena.slot_count))
