"""The owner of the chunk arena: accepts or refuses reads into its slots. It obeys or refuses; it never chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from services.expert_store.channel import ReadChannel
from services.expert_store.job import ReadJob
from services.expert_store.operations import ReadResult
from services.expert_store.plan import ReadPlan
from zipmoe.arena.arena import Arena
from zipmoe.arena.lease import SlotTable
from zipmoe.errors import ZipMoeError
from zipmoe.residency.base import Read
from zipmoe.types import ExpertKey, Part, SlotRef

_log = structlog.get_logger()


class ChunkOwner:
    """Turns the reads of sessions into jobs of the I/O channel, and the ends of jobs into leases.

    Sessions are named by a `holder`, a string that is never used twice.

    Thread: the event loop's only; nothing here waits.
    """

    def __init__(self, arena: Arena, channel: ReadChannel, plan: Callable[[ExpertKey, Part], ReadPlan]) -> None:
        self.slots = SlotTable(arena.owner_id, arena.epoch, arena.slot_count)
        self._plan = plan
        self._arena = arena
        self._channel = channel
        self._writing: dict[str, int] = {}  # reads under way of each session, also of sessions that are over

    def apply(self, holder: str, releases: Sequence[SlotRef], reads: Sequence[Read]) -> list[ReadResult]:
        """Applies releases, then starts reads in their order.

        Returns:
            The reads that were refused, each with its reason. All others end later, by `ended`.
        """
        for ref in releases:
            self._release(holder, ref)
        refusals = [(read.operation_id, self._start(holder, read)) for read in reads]
        return [ReadResult(operation_id, refusal) for operation_id, refusal in refusals if refusal is not None]

    def ended(self, job: ReadJob) -> ReadResult:
        """Takes a job back from the channel: its slot is now held by its session, or free."""
        self.slots.finish_write(job.read.chunk_slot, ok=job.error is None)
        left = self._writing[job.holder] - 1
        if left:
            self._writing[job.holder] = left
        else:
            del self._writing[job.holder]
        read_s = job.ended_s - job.started_s if job.started_s else 0.0
        return ReadResult(job.read.operation_id, job.error, job.bytes_read, read_s)

    def close(self, holder: str) -> None:
        """Ends a session: frees its slots, those that are being written once their last request has ended."""
        self._channel.abandon(holder)
        self.slots.drop_holder(holder)

    def writing(self, holder: str) -> int:
        """Reads of a session that have not ended."""
        return self._writing.get(holder, 0)

    def _release(self, holder: str, ref: SlotRef) -> None:
        try:
            self.slots.release(ref, holder)
        except ZipMoeError as error:
            _log.warning("release refused", session=holder, slot=str(ref), reason=error.message)

    def _start(self, holder: str, read: Read) -> ZipMoeError | None:
        try:
            plan = self._plan(read.key, read.parts)
            self.slots.begin_write(read.chunk_slot, holder)
        except ZipMoeError as refusal:
            return refusal
        self._writing[holder] = self._writing.get(holder, 0) + 1
        slot = self._arena.slot(read.chunk_slot.slot)
        self._channel.submit(ReadJob(read, holder, plan, slot))
        return None
