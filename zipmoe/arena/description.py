"""What another process has to know of an arena to map it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from zipmoe.arena.arena import Arena


class ArenaDescription(NamedTuple):
    """Location of an arena, and number and size of the slots.

    Attributes:
        broker_path: path of the UNIX socket that hands out a read-only file descriptor.
        slot_bytes: bytes of one slot, a multiple of 4096.
    """

    owner_id: str
    arena_epoch: int
    broker_path: str
    slot_bytes: int
    slot_count: int

    @classmethod
    def of(cls, arena: Arena, broker_path: Path) -> ArenaDescription:
        """Describes an arena that a broker hands out."""
        return cls(arena.owner_id, arena.epoch, str(broker_path), arena.slot_bytes, arena.slot_count)
