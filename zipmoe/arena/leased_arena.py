"""An arena together with the leases on its slots."""

from __future__ import annotations

from typing import NamedTuple

from zipmoe.arena.arena import Arena
from zipmoe.arena.lease import SlotTable


class LeasedArena(NamedTuple):
    """The owner's two views of an arena: its memory, and the leases on its slots."""

    arena: Arena
    slots: SlotTable

    @classmethod
    def of(cls, arena: Arena) -> LeasedArena:
        """Combines an arena with a new lease table in which every slot is free."""
        return cls(arena, SlotTable(arena.owner_id, arena.epoch, arena.slot_count))
