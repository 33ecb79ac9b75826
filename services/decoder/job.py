"""One recovery of one expert: which of its E-chunks are left, and which of its tensors are complete."""

from __future__ import annotations

from typing import NamedTuple

from zipmoe.codec.base import Codec
from zipmoe.errors import ZipMoeError
from zipmoe.residency.pools import Recover
from zipmoe.services.decoder.plan import RecoverPlan, RecoverUnit


class Slots(NamedTuple):
    """The memory that one recovery works on: read-only chunks of the whole expert, and writable space for its tensors.

    Attributes:
        e_chunks: bytes of the E slot.
        sm_chunks: bytes of the SM slot.
        tensors: bytes of the tensor slot.
    """

    e_chunks: memoryview
    sm_chunks: memoryview
    tensors: memoryview


class RecoverJob:
    """One recovery on its way through the worker pool.

    Attributes:
        fetch: what is recovered, from which slots into which.
        begin_by_s: on the monotonic clock, when nobody waits for it any more; it is not begun from then on.
        rank: place in the order of urgency, of this job alone; the smallest goes first.
        error: why it failed; None so far, and in the end if it did not. The first error counts.
        started_s: when its first E-chunk was taken, in seconds of the monotonic clock; 0 before.
        ended_s: when its last E-chunk was recovered; 0 before.

    Thread: guarded by the pool's lock until it has ended, then owned by whoever received it.
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
        "fetch",
        "rank",
        "started_s",
    )

    def __init__(
        self, fetch: Recover, rank: int, plan: RecoverPlan, slots: Slots, *, begin_by_s: float, verify: bool
    ) -> None:
        """Takes the slots over: `let_go` releases them.

        Args:
            fetch: what is asked for.
            rank: order of arrival; among jobs of the same urgency the smaller goes first.
            plan: of the expert.
            slots: of `fetch`.
            begin_by_s: see above.
            verify: whether recovered tensors are compared with the checksum of the checkpoint's.
        """
        self.fetch = fetch
        self.begin_by_s = begin_by_s
        self.rank = (int(fetch.urgency), rank)
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
        """Whether nothing will be left to take any more and nothing is running."""
        return self._next == len(self._plan.units) and self._running == 0

    @property
    def recovered_bytes(self) -> int:
        """Bytes of the expert's bf16 weights."""
        return self._plan.recovered_bytes

    def make_ready(self, *, first_tensor_only: bool) -> int:
        """Lets E-chunks be taken, those of the whole expert or of its first tensor; returns how many more that are."""
        if self.error is not None:
            return 0  # it was stopped
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
        """Gives up: what has not been taken never will be."""
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
        """Notes an E-chunk as recovered; returns whether its tensor is complete by that."""
        self._left[unit.tensor] -= 1
        return self._left[unit.tensor] == 0

    def only_first_recovered(self, unit: RecoverUnit) -> bool:
        """Whether an E-chunk that completed its tensor completed the first one while another is not complete yet."""
        return unit.tensor == 0 and any(self._left)

    def check(self, tensor: int) -> None:
        """Compares a complete tensor with the checkpoint's, if that is wanted.

        Raises:
            CorruptData: it is not what was packed.
        """
        if self._verify:
            self._plan.check(tensor, self._slots.tensors, self.fetch.key)

    def settle(self) -> None:
        """Notes an E-chunk as over, its check included."""
        self._running -= 1

    def let_go(self) -> None:
        """Drops the views of the slots, so that the arenas can be closed."""
        if self.error is not None:
            # The frames of a traceback hold slices of the slots.
            self.error.__traceback__ = self.error.__cause__ = self.error.__context__ = None
        for view in self._slots:
            view.release()


class RecoverEvent(NamedTuple):
    """A recovery has come further: it has `ended`, or its first tensor is recovered while the rest is not yet.

    Before the job has ended it still belongs to the pool: nothing but `fetch` is to be looked at.
    """

    job: RecoverJob
    ended: bool
