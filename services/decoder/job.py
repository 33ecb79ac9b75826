"""One recovery of one expert: which of its E-chunks are left, and which of its tensors are complete."""

from __future__ import annotations

from services.decoder.plan import RecoverPlan, RecoverUnit
from zipmoe.codec.base import Codec
from zipmoe.errors import ZipMoeError
from zipmoe.residency.base import Recover


class RecoverJob:
    """One recovery on its way through the worker pool.

    Attributes:
        fetch: what is recovered, from which slot into which.
        holder: the session that wants it.
        rank: place in the order of urgency; the smallest goes first.
        error: why it failed; None so far, and in the end if it did not. The first error counts.
        started_s: when its first E-chunk was taken, in seconds of the monotonic clock; 0 before.
        ended_s: when its last E-chunk was recovered; 0 before.

    Thread: guarded by the pool's lock until it has ended, then owned by whoever received it.
    """

    __slots__ = (
        "_chunk_slot",
        "_left",
        "_next",
        "_plan",
        "_running",
        "_tensor_slot",
        "_verify",
        "ended_s",
        "error",
        "fetch",
        "holder",
        "rank",
        "started_s",
    )

    def __init__(self, fetch: Recover, holder: str, rank: int, plan: RecoverPlan) -> None:
        self.fetch = fetch
        self.holder = holder
        self.rank = rank
        self.error: ZipMoeError | None = None
        self.started_s = 0.0
        self.ended_s = 0.0
        self._plan = plan
        self._left = list(plan.unit_counts)
        self._next = 0
        self._running = 0
        self._chunk_slot = memoryview(b"")
        self._tensor_slot = memoryview(b"")
        self._verify = False

    def attach(self, chunk_slot: memoryview, tensor_slot: memoryview, *, verify: bool) -> None:
        """Gives the job its memory.

        Args:
            chunk_slot: read-only bytes of the slot that holds the record, all parts of it.
            tensor_slot: writable bytes of the slot to recover into.
            verify: whether recovered tensors are compared with the checksum of the checkpoint's.
        """
        self._chunk_slot = chunk_slot
        self._tensor_slot = tensor_slot
        self._verify = verify

    @property
    def unit_count(self) -> int:
        """E-chunks of the whole expert."""
        return len(self._plan.units)

    @property
    def taken(self) -> bool:
        """Whether no E-chunk is left to take."""
        return self._next == len(self._plan.units)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to take and nothing is running."""
        return self.taken and self._running == 0

    @property
    def recovered_bytes(self) -> int:
        """Bytes of the expert's bf16 weights."""
        return self._plan.recovered_bytes

    def take(self) -> RecoverUnit:
        """Hands out the next E-chunk."""
        unit = self._plan.units[self._next]
        self._next += 1
        self._running += 1
        return unit

    def stop(self, error: ZipMoeError) -> None:
        """Gives up: what has not been taken never will be."""
        self.error = self.error or error
        self._next = len(self._plan.units)

    def recover(self, codec: Codec, unit: RecoverUnit) -> None:
        """Recovers the rows of one E-chunk from the chunk slot into the tensor slot.

        Raises:
            CorruptData: the codec refuses the chunk.

        Thread: any number at once, on different units.
        """
        codec.recover(self._chunk_slot[unit.e_chunk], self._chunk_slot[unit.sm], self._tensor_slot[unit.out])

    def recovered(self, unit: RecoverUnit) -> bool:
        """Notes an E-chunk as recovered; returns whether its tensor is complete by that."""
        self._left[unit.tensor] -= 1
        return self._left[unit.tensor] == 0

    def check(self, tensor: int) -> None:
        """Compares a complete tensor with the checkpoint's, if that is wanted.

        Raises:
            CorruptData: it is not what was packed.
        """
        if self._verify:
            self._plan.check(tensor, self._tensor_slot, self.fetch.key)

    def settle(self, error: ZipMoeError | None) -> None:
        """Notes an E-chunk as over."""
        self._running -= 1
        if error is not None:
            self.stop(error)

    def let_go(self) -> None:
        """Drops the views of both slots, so that the arenas can be closed."""
        if self.error is not None:
            # The frames of a traceback hold slices of the slots.
            self.error.__traceback__ = self.error.__cause__ = self.error.__context__ = None
        self._chunk_slot.release()
        self._tensor_slot.release()
