"""The residency states of one expert and the moves between them. Everything about state lives here."""

from __future__ import annotations

import enum


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
    DROP_E = "drop_e"
    DROP_SM = "drop_sm"
    DROP_TENSOR = "drop_tensor"

    __hash__ = object.__hash__


#: (state, move) -> possible next states. FULL covers an expert whose chunks are kept beside its tensor, so dropping the
#: tensor leads to what chunks there are. What is not listed is a bug of the brain.
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
