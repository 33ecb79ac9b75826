"""Defines the residency states of an expert and the legal moves between states."""

from __future__ import annotations

import enum


class Residency(enum.Enum):
    """Stable residency state of an expert: the set of its parts that memory holds.

    Source: ZipMoE (arXiv 2601.21198), the compression states of its hierarchical cache.
    """

    ABSENT = "absent"
    E_ONLY = "e_only"
    SM_ONLY = "sm_only"
    PACKED = "packed"
    FULL = "full"

    # Enums hash by name, in Python code, and that would dominate the cost of counting. Members are singletons, so the
    # identity serves as well.
    __hash__ = object.__hash__


class Move(enum.Enum):
    """Change of the bytes that memory holds of an expert."""

    READ_E = "read_e"
    READ_SM = "read_sm"
    READ_ALL = "read_all"
    RECOVER = "recover"
    DROP_E = "drop_e"
    DROP_SM = "drop_sm"
    DROP_TENSOR = "drop_tensor"

    __hash__ = object.__hash__


#: (state, move) -> possible next states. FULL includes experts that keep chunks beside the tensor, so dropping the
#: tensor leads to the state of the remaining chunks. A move that is not listed is a bug of the brain.
LEGAL_MOVES: dict[tuple[Residency, Move], frozenset[Residency]] = {
    (Residency.ABSENT, Move.READ_E): frozenset({Residency.E_ONLY}),
    (Residency.ABSENT, Move.READ_SM): frozenset({Residency.SM_ONLY}),
    (Residency.ABSENT, Move.READ_ALL): frozenset({Residency.PACKED}),
    (Residency.E_ONLY, Move.READ_SM): frozenset({Residency.PACKED}),
    (Residency.SM_ONLY, Move.READ_E): frozenset({Residency.PACKED}),
    (Residency.PACKED, Move.RECOVER): frozenset({Residency.FULL}),
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
