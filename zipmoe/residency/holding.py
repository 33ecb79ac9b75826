"""Record of the slots and of the residency state of each expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zipmoe.residency.pools import Pool
from zipmoe.residency.state import LEGAL_MOVES, Move, Residency
from zipmoe.types import ExpertKey, Part, SlotRef

if TYPE_CHECKING:
    from zipmoe.residency.slot_pool import DecoderPools

_BY_PARTS = (Residency.ABSENT, Residency.E_ONLY, Residency.SM_ONLY, Residency.PACKED)
_PARTS = (Part.NONE, Part.E, Part.SM, Part.ALL)
_DROPS = {Pool.E: Move.DROP_E, Pool.SM: Move.DROP_SM, Pool.TENSOR: Move.DROP_TENSOR}


@dataclass(slots=True, eq=False)
class Holding:
    """Slots of an expert, and the needs of the running step.

    A slot is set as soon as it is assigned. `has_e`, `has_sm` and `has_tensor` tell whether its content is valid.
    Validity of the chunks is two booleans and not a `Part`, because a miss queries the chunks a dozen times and flag
    operators are slow.

    Attributes:
        key: the expert.
        index: index of the expert in score arrays, `layer * expert_count + expert`.
        home: the decoder that owns the slots; None while the expert has no slot and waits for none.
        rows: tokens of the running step that are routed to the expert; 0 once the step has finished with the expert or
            if it does not need the expert.
        pin: the form in which the running step uses the expert or will use it next. The slots of that form stay.
        read_id: id of the read under way, 0 for none.
        recover_id: id of the recovery under way, 0 for none.
        queued: whether the load of `home` includes a fetch of this expert.
        unfit: whether the recovered expert does not fit a tensor slot.
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
    unfit: bool = False

    @property
    def residency(self) -> Residency:
        """Stable state of the expert."""
        return Residency.FULL if self.has_tensor else _BY_PARTS[self.has_e + 2 * self.has_sm]

    @property
    def packed(self) -> bool:
        """Whether E-chunks and SM-chunks are valid."""
        return self.has_e and self.has_sm

    @property
    def missing(self) -> Part:
        """Parts for which no slot is assigned."""
        return _PARTS[(self.e_slot is None) + 2 * (self.sm_slot is None)]

    @property
    def empty(self) -> bool:
        """Whether no slot is assigned to the expert."""
        return self.e_slot is None and self.sm_slot is None and self.tensor_slot is None

    @property
    def awaited(self) -> bool:
        """Whether the running step waits for the expert."""
        return self.rows > 0 and self.pin is None

    @property
    def under_way(self) -> bool:
        """Whether a read or a recovery of the expert has not ended."""
        return self.read_id > 0 or self.recover_id > 0

    def slot(self, pool: Pool) -> SlotRef | None:
        """Returns the slot of a pool that is assigned to the expert."""
        if pool is Pool.E:
            return self.e_slot
        return self.sm_slot if pool is Pool.SM else self.tensor_slot

    def assign(self, pool: Pool, ref: SlotRef | None) -> None:
        """Assigns a slot of a pool, or with None takes back a slot that never became valid."""
        if pool is Pool.E:
            self.e_slot = ref
        elif pool is Pool.SM:
            self.sm_slot = ref
        else:
            self.tensor_slot = ref

    def has(self, pool: Pool) -> bool:
        """Tells whether the expert's slot of a pool has valid content."""
        if pool is Pool.E:
            return self.has_e
        return self.has_sm if pool is Pool.SM else self.has_tensor

    def was_read(self, parts: Part) -> None:
        """Marks the chunks as valid after a read of `parts`."""
        before = self.residency
        self.has_e = self.has_e or self.e_slot is not None
        self.has_sm = self.has_sm or self.sm_slot is not None
        self._check(before, _READS[parts])

    def was_recovered(self) -> None:
        """Marks the tensor as valid."""
        before = self.residency
        self.has_tensor = True
        self._check(before, Move.RECOVER)

    def drop(self, pool: Pool) -> SlotRef:
        """Gives up the valid slot of a pool and returns the slot."""
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
