"""Tracks the progress of one recovery: the units that are left and the tensors that are complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zipmoe.kernels.linear import CascadePart
from zipmoe.process.job import PooledJob
from zipmoe.residency.pools import Recover
from zipmoe.services.decoder.plan import RecoverPlan, RecoverUnit
from zipmoe.services.decoder.recovered_form import RecoveredForm


class Slots(NamedTuple):
    """The memory of a recovery: read-only chunks of the whole expert and writable space for the tensors.

    Attributes:
        e_chunks: bytes of the E slot.
        sm_chunks: bytes of the SM slot.
        tensors: bytes of the tensor slot.
    """

    e_chunks: memoryview
    sm_chunks: memoryview
    tensors: memoryview


class RecoverJob(PooledJob[RecoverUnit]):
    """A recovery of an expert in the decoder's workers; a part is one tensor."""

    __slots__ = ("_form", "_left", "_plan", "_slots", "_verify", "recovery")

    def __init__(
        self,
        recovery: Recover,
        plan: RecoverPlan,
        slots: Slots,
        form: RecoveredForm,
        *,
        begin_by_s: float,
        verify: bool,
    ) -> None:
        """Takes over the views of the slots; `let_go` releases them.

        Args:
            recovery: the operation.
            plan: plan of the expert.
            slots: slots of `recovery`.
            form: the form that the plan recovers to.
            begin_by_s: see `PooledJob`.
            verify: whether recovered tensors are compared with the checkpoint's checksums.
        """
        super().__init__(recovery, plan.units, plan.unit_counts[0], begin_by_s)
        self.recovery = recovery
        self._plan = plan
        self._left = list(plan.unit_counts)
        self._slots = slots
        self._form = form
        self._verify = verify

    @property
    def title(self) -> str:
        """What the job does, for messages."""
        return f"the recovery of {self.recovery.key}"

    @property
    def recovered_bytes(self) -> int:
        """Bytes of the expert's bf16 weights."""
        return self._plan.recovered_bytes

    def recover(self, unit: RecoverUnit) -> None:
        """Recovers the rows of a unit from the chunk slots into the tensor slot.

        Raises:
            CorruptData: a chunk is refused.
            ResourceExhausted: the weights need more bytes in this form than the tensor slot has for them.

        Thread: any number at once, on different units.
        """
        e_chunks, sm_chunks, tensors = self._slots
        parts = [CascadePart(part.rows, e_chunks[part.e_chunk], sm_chunks[part.sm]) for part in unit.parts]
        self._form.recover(parts, tensors[unit.out], self._plan.rooms[unit.tensor])

    def done(self, unit: RecoverUnit) -> list[int]:
        """Counts a unit as recovered; returns the index of its tensor if the tensor is now complete."""
        self._left[unit.tensor] -= 1
        return [] if self._left[unit.tensor] else [unit.tensor]

    def check(self, part: int) -> None:
        """Verifies the checksum of a complete tensor if `verify` is set.

        Raises:
            CorruptData: the tensor differs from the checkpoint's.
        """
        if self._verify:
            room = self._plan.rooms[part]
            weights = self._form.weights(self._slots.tensors[room.begin : room.end], room)
            self._plan.check(part, weights, self.recovery.key)

    def checked(self, parts: Sequence[int]) -> bool:
        """Tells whether these tensors are the first one while other tensors are incomplete."""
        return 0 in parts and any(self._left) and self.error is None

    def let_go(self) -> None:
        """Drops the views of the slots, so that the arenas can be closed."""
        for view in self._slots:
            view.release()
