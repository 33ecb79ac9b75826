"""The residency states of one expert and the moves between them. Everything about state lives here."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from zipmoe.types import ExpertKey, Part, SlotRef


class Residency(enum.Enum):
    """What memory holds of an expert, in stable states that can be counted.

    Source: ZipMoE (arXiv 2601.21198), the compression states of its hierarchical cache.
    """

    ABSENT = "absent"
    E_ONLY = "e_only"
    SM_ONLY = "sm_only"
    PACKED = "packed"
    FULL = "full"

    # Members are singletons; hashing them by name, as enums do, is what counting them would mostly cost.
    __hash__ = object.__hash__


class Pending(enum.Enum):
    """What is under way for an expert, beside its stable state."""

    NONE = "none"
    LOADING = "loading"
    RECOVERING = "recovering"


class Move(enum.Enum):
    """What can happen to an expert's bytes."""

    READ_E = "read_e"
    READ_SM = "read_sm"
    READ_ALL = "read_all"
    RECOVER = "recover"
    DROP_CHUNKS = "drop_chunks"
    DROP_E = "drop_e"
    DROP_SM = "drop_sm"
    DROP_TENSOR = "drop_tensor"

    __hash__ = object.__hash__


#: (state, move) -> possible next states. FULL covers an expert whose chunks are kept beside its tensor, so dropping the
#: tensor leads to what chunks there are. DROP_CHUNKS is of arenas where one slot holds both chunks, DROP_E and DROP_SM
#: of those where each has its own. What is not listed is a bug of the brain.
LEGAL_MOVES: dict[tuple[Residency, Move], frozenset[Residency]] = {
    (Residency.ABSENT, Move.READ_E): frozenset({Residency.E_ONLY}),
    (Residency.ABSENT, Move.READ_SM): frozenset({Residency.SM_ONLY}),
    (Residency.ABSENT, Move.READ_ALL): frozenset({Residency.PACKED}),
    (Residency.E_ONLY, Move.READ_SM): frozenset({Residency.PACKED}),
    (Residency.SM_ONLY, Move.READ_E): frozenset({Residency.PACKED}),
    (Residency.PACKED, Move.RECOVER): frozenset({Residency.FULL}),
    (Residency.E_ONLY, Move.DROP_CHUNKS): frozenset({Residency.ABSENT}),
    (Residency.SM_ONLY, Move.DROP_CHUNKS): frozenset({Residency.ABSENT}),
    (Residency.PACKED, Move.DROP_CHUNKS): frozenset({Residency.ABSENT}),
    (Residency.FULL, Move.DROP_CHUNKS): frozenset({Residency.FULL}),
    (Residency.E_ONLY, Move.DROP_E): frozenset({Residency.ABSENT}),
    (Residency.SM_ONLY, Move.DROP_SM): frozenset({Residency.ABSENT}),
    (Residency.PACKED, Move.DROP_E): frozenset({Residency.SM_ONLY}),
    (Residency.PACKED, Move.DROP_SM): frozenset({Residency.E_ONLY}),
    (Residency.FULL, Move.DROP_E): frozenset({Residency.FULL}),
    (Residency.FULL, Move.DROP_SM): frozenset({Residency.FULL}),
    (Residency.FULL, Move.DROP_TENSOR): frozenset(
        {Residency.ABSENT, Residency.E_ONLY, Residency.SM_ONLY, Residency.PACKED}
    ),
}

_READS = {Part.E: Move.READ_E, Part.SM: Move.READ_SM, Part.ALL: Move.READ_ALL}
_BY_PARTS = {
    Part.NONE: Residency.ABSENT,
    Part.E: Residency.E_ONLY,
    Part.SM: Residency.SM_ONLY,
    Part.ALL: Residency.PACKED,
}


@dataclass(slots=True)
class ExpertState:
    """Where one expert's bytes are.

    Attributes:
        parts: chunks that are valid in `chunk_slot`.
        chunk_slot: the slot of the chunk arena that holds, or is being filled with, chunks.
        tensor_slot: the slot of the tensor arena that holds, or is being filled with, the recovered tensor.
        has_tensor: whether `tensor_slot` is valid.
        pins: users of the tensor right now; a pinned tensor is not evicted.
        last_use: logical time of the last use.
    """

    key: ExpertKey
    parts: Part = Part.NONE
    chunk_slot: SlotRef | None = None
    tensor_slot: SlotRef | None = None
    has_tensor: bool = False
    pins: int = 0
    last_use: int = 0

    @property
    def residency(self) -> Residency:
        """The stable state."""
        return Residency.FULL if self.has_tensor else _BY_PARTS[self.parts]

    @property
    def pending(self) -> Pending:
        """What is under way: an assigned slot that is not yet valid."""
        if self.chunk_slot is not None and self.parts is not Part.ALL and not self.has_tensor:
            return Pending.LOADING
        if self.tensor_slot is not None and not self.has_tensor:
            return Pending.RECOVERING
        return Pending.NONE

    def move(self, move: Move) -> None:
        """Applies a completed move; the only way to change `parts` and `has_tensor`."""
        before = self.residency
        if move is Move.RECOVER:
            self.has_tensor = True
        elif move is Move.DROP_TENSOR:
            self.has_tensor, self.tensor_slot = False, None
        elif move is Move.DROP_CHUNKS:
            self.parts, self.chunk_slot = Part.NONE, None
        else:
            self.parts |= _PARTS_OF[move]
        allowed = LEGAL_MOVES.get((before, move), frozenset())
        after = self.residency
        assert after in allowed, f"{self.key}: {move.value} leads from {before.value} to {after.value}"


_PARTS_OF = {move: parts for parts, move in _READS.items()}


def read_move(parts: Part) -> Move:
    """The move that a completed read of `parts` is."""
    return _READS[parts]
