"""Tracks the progress of one recovery: the E-chunks that are left and the tensors that are complete."""

from __future__ import annotations

from typing import NamedTuple

from zipmoe.codec.base import Codec
from zipmoe.errors import ZipMoeError
from zipmoe.residency.pools import Recover
from zipmoe.services.decoder.plan import RecoverPlan, RecoverUnit


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


class RecoverJob:
    """A recovery of an expert in the worker pool.

    Attributes:
        recovery: the operation: expert and slots.
        begin_by_s: deadline on the monotonic clock; the job does not begin from then on.
        rank: place in the order of jobs, by urgency, then by arrival; the smallest goes first.
        error: cause of the failure; None while there is none. The first error counts.
        started_s: time at which the first E-chunk was taken, in seconds of the monotonic clock; 0 before.
        ended_s: time of the end, after the last check; 0 before.

    Thread: guarded by the pool's lock until the job has ended, then owned by the receiver of the report.
    """

    __slots__ = (
        "_left",
        "_next",
        "_plan",
        "_ready",
        "_running",
        "_slots",
        "_verify",
        "begin_by_s",
        "ended_s",
        "error",
        "rank",
        "recovery",
        "started_s",
    )

    def __init__(
        self, recovery: Recover, rank: int, plan: RecoverPlan, slots: Slots, *, begin_by_s: float, verify: bool
    ) -> None:
        """Takes over the views of the slots; `let_go` releases them.

        Args:
            recovery: the operation.
            rank: order of arrival; among jobs of the same urgency the smaller goes first.
            plan: plan of the expert.
            slots: slots of `recovery`.
            begin_by_s: see the class.
            verify: whether recovered tensors are compared with the checkpoint's checksums.
        """
        self.recovery = recovery
        self.begin_by_s = begin_by_s
        self.rank = (int(recovery.urgency), rank)
        self.error: ZipMoeError | None = None
        self.started_s = 0.0
        self.ended_s = 0.0
        self._plan = plan
        self._left = list(plan.unit_counts)
        self._ready = 0
        self._next = 0
        self._running = 0
        self._slots = slots
        self._verify = verify

    @property
    def taken(self) -> bool:
        """Whether no E-chunk is left to take at the moment."""
        return self._next == self._ready

    @property
    def ended(self) -> bool:
        """Whether no E-chunk is left to take, now or later, and no E-chunk is running."""
        return self._next == len(self._plan.units) and self._running == 0

    @property
    def recovered_bytes(self) -> int:
        """Bytes of the expert's bf16 weights."""
        return self._plan.recovered_bytes

    def make_ready(self, *, first_tensor_only: bool) -> int:
        """Makes the E-chunks of the whole expert or of the first tensor ready; returns the number of new ones."""
        if self.error is not None:
            return 0  # the job was stopped
        before = self._ready
        self._ready = self._plan.unit_counts[0] if first_tensor_only else len(self._plan.units)
        return self._ready - before

    def take(self) -> RecoverUnit:
        """Hands out the next E-chunk."""
        unit = self._plan.units[self._next]
        self._next += 1
        self._running += 1
        return unit

    def stop(self, error: ZipMoeError) -> None:
        """Fails the job with an error and drops the E-chunks that have not been taken."""
        self.error = self.error or error
        self._next = self._ready = len(self._plan.units)

    def recover(self, codec: Codec, unit: RecoverUnit) -> None:
        """Recovers the rows of one E-chunk from the chunk slots into the tensor slot.

        Raises:
            CorruptData: the codec refuses the chunk.

        Thread: any number at once, on different units.
        """
        e_chunks, sm_chunks, tensors = self._slots
        codec.recover(e_chunks[unit.e_chunk], sm_chunks[unit.sm], tensors[unit.out])

    def recovered(self, unit: RecoverUnit) -> bool:
        """Counts an E-chunk as recovered; returns whether its tensor is now complete."""
        self._left[unit.tensor] -= 1
        return self._left[unit.tensor] == 0

    def only_first_recovered(self, unit: RecoverUnit) -> bool:
        """Tells whether a completed tensor is the first tensor while other tensors are incomplete.

        `unit` is the E-chunk that completed the tensor.
        """
        return unit.tensor == 0 and any(self._left)

    def check(self, tensor: int) -> None:
        """Verifies the checksum of a complete tensor if `verify` is set.

        Raises:
            CorruptData: the tensor differs from the checkpoint's.
        """
        if self._verify:
            self._plan.check(tensor, self._slots.tensors, self.recovery.key)

    def settle(self) -> None:
        """Counts an E-chunk as over, check included."""
        self._running -= 1

    def let_go(self) -> None:
        """Drops the views of the slots, so that the arenas can be closed."""
        for view in self._slots:
            view.release()


class RecoverEvent(NamedTuple):
    """Report on a recovery: the recovery has `ended`, or the first tensor is recovered while other tensors are not.

    Before the end the job belongs to the pool. The receiver may then access only `recovery`.
    """

    job: RecoverJob
    ended: bool
