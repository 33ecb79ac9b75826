"""What memory holds of one expert where E-chunks, SM-chunks and recovered tensors have a pool of slots each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zipmoe.residency.pools import Pool
from zipmoe.residency.state import LEGAL_MOVES, Move, Pending, Residency
from zipmoe.types import ExpertKey, Part, SlotRef

if TYPE_CHECKING:
    from zipmoe.residency.slot_pool import DecoderPools

_BY_PARTS = (Residency.ABSENT, Residency.E_ONLY, Residency.SM_ONLY, Residency.PACKED)
_PARTS = (Part.NONE, Part.E, Part.SM, Part.ALL)
_DROPS = {Pool.E: Move.DROP_E, Pool.SM: Move.DROP_SM, Pool.TENSOR: Move.DROP_TENSOR}


@dataclass(slots=True, eq=False)
class Holding:
    """Where one expert's bytes are, and who waits for them.

    A slot is set as soon as it is assigned; `has_...` says whether its content is valid. Chunks are two booleans, not a
    `Part`, because a dozen questions about them are asked for every missing expert, and operators of flags are slow.

    Attributes:
        index: the expert's place in score arrays, `layer * expert_count + expert`.
        home: the decoder in whose arenas the slots are; None while there are none and none are waited for.
        rows: tokens of the running step that wait for it, 0 where it is not needed or the step has finished with it.
        pin: the form in which the running step uses it, or will next; its slots stay.
        read_id: the read under way, 0 for none.
        recover_id: the recovery under way, 0 for none.
        queued: whether its home counts it as work that has not ended.
    """

    key: ExpertKey
    index: int
    home: DecoderPools | None = None
    e_slot: SlotRef | None = None
    sm_slot: SlotRef | None = None
    tensor_slot: SlotRef | None = None
    has_e: bool = False
    has_sm: bool = False
    has_tensor: bool = False
    rows: int = 0
    pin: Residency | None = None
    read_id: int = 0
    recover_id: int = 0
    queued: bool = False

    @property
    def residency(self) -> Residency:
        """The stable state."""
        return Residency.FULL if self.has_tensor else _BY_PARTS[self.has_e + 2 * self.has_sm]

    @property
    def pending(self) -> Pending:
        """What is under way."""
        if self.read_id:
            return Pending.LOADING
        return Pending.RECOVERING if self.recover_id else Pending.NONE

    @property
    def packed(self) -> bool:
        """Whether both chunks are there."""
        return self.has_e and self.has_sm

    @property
    def missing(self) -> Part:
        """Chunks that no slot is assigned for."""
        return _PARTS[(self.e_slot is None) + 2 * (self.sm_slot is None)]

    @property
    def empty(self) -> bool:
        """Whether no slot is assigned to it."""
        return self.e_slot is None and self.sm_slot is None and self.tensor_slot is None

    @property
    def awaited(self) -> bool:
        """Whether the running step waits for it."""
        return self.rows > 0 and self.pin is None

    @property
    def under_way(self) -> bool:
        """Whether an operation will change what is held."""
        return self.read_id > 0 or self.recover_id > 0

    def slot(self, pool: Pool) -> SlotRef | None:
        """The slot of a pool that is assigned to it."""
        if pool is Pool.E:
            return self.e_slot
        return self.sm_slot if pool is Pool.SM else self.tensor_slot

    def assign(self, pool: Pool, ref: SlotRef | None) -> None:
        """Assigns a slot of a pool, or takes one away whose content never became valid."""
        if pool is Pool.E:
            self.e_slot = ref
        elif pool is Pool.SM:
            self.sm_slot = ref
        else:
            self.tensor_slot = ref

    def has(self, pool: Pool) -> bool:
        """Whether what it has in a pool is valid."""
        if pool is Pool.E:
            return self.has_e
        return self.has_sm if pool is Pool.SM else self.has_tensor

    def was_read(self, parts: Part) -> None:
        """Makes chunks valid."""
        before = self.residency
        self.has_e = self.has_e or self.e_slot is not None
        self.has_sm = self.has_sm or self.sm_slot is not None
        self._check(before, _READS[parts])

    def was_recovered(self) -> None:
        """Makes the tensor valid."""
        before = self.residency
        self.has_tensor = True
        self._check(before, Move.RECOVER)

    def drop(self, pool: Pool) -> SlotRef:
        """Gives up what is valid in a pool."""
        before = self.residency
        if pool is Pool.E:
            ref, self.e_slot, self.has_e = self.e_slot, None, False
        elif pool is Pool.SM:
            ref, self.sm_slot, self.has_sm = self.sm_slot, None, False
        else:
            ref, self.tensor_slot, self.has_tensor = self.tensor_slot, None, False
        self._check(before, _DROPS[pool])
        assert ref is not None
        return ref

    def _check(self, before: Residency, move: Move) -> None:
        after = self.residency
        assert (before, move, after) in _LEGAL, f"{self.key}: {move.value} leads from {before.value} to {after.value}"


_LEGAL = {(before, move, after) for (before, move), allowed in LEGAL_MOVES.items() for after in allowed}
_READS = {Part.E: Move.READ_E, Part.SM: Move.READ_SM, Part.ALL: Move.READ_ALL}
