"""Owns the two chunk arenas: accepts or refuses reads into slots and leases the slots; never chooses a slot."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from zipmoe.arena.arena import Arena
from zipmoe.arena.leased_arena import LeasedArena
from zipmoe.errors import Cancelled, InvalidRequest, Unavailable, ZipMoeError
from zipmoe.process.task_pool import TaskPool
from zipmoe.residency.pools import Completed, Operations, Pool, Read, Release
from zipmoe.services.expert_store.job import ReadJob
from zipmoe.services.expert_store.plan import ReadPlan
from zipmoe.types import ExpertKey, Part, SlotRef

_LOG = structlog.get_logger(__name__)


class ReadSessions:
    """Turns the reads of sessions into jobs of the I/O threads, and ended jobs into leases.

    The name of a session is a `holder`, a string that is never used twice. `pools` are the two arenas, E and SM.

    Thread: the event loop's only; no method waits.
    """

    def __init__(
        self, e_arena: Arena, sm_arena: Arena, io: TaskPool[ReadJob], plan: Callable[[ExpertKey, Part], ReadPlan]
    ) -> None:
        self.pools = {Pool.E: LeasedArena.of(e_arena), Pool.SM: LeasedArena.of(sm_arena)}
        self._plan = plan
        self._io = io
        self._writing: dict[str, int] = {}  # unfinished reads of each session, ended sessions included

    def apply(self, holder: str, operations: Operations) -> list[Completed]:
        """Applies cancels and releases of a batch, then starts the reads in the given order.

        Returns:
            The refused operations, each with its error: some reads, and all recoveries. All other reads end later, by
            `ended`.
        """
        if operations.cancels:
            self._cancel(holder, frozenset(operations.cancels))
        for release in operations.releases:
            self._release(holder, release)
        refused = [
            Completed(recovery.operation_id, InvalidRequest("an expert store recovers nothing"))
            for recovery in operations.recoveries
        ]
        for read in operations.reads:
            try:
                self._start(holder, read, operations.begin_by_s(read))
            except ZipMoeError as refusal:
                refused.append(Completed(read.operation_id, refusal))
        return refused

    def ended(self, job: ReadJob) -> Completed:
        """Takes back an ended job from the pool; its slots are now held by the session, or free."""
        for pool, ref in _slots_of(job.read):
            self.pools[pool].slots.finish_write(ref, ok=job.error is None)
        left = self._writing[job.holder] - 1
        if left:
            self._writing[job.holder] = left
        else:
            del self._writing[job.holder]
        return Completed(job.read.operation_id, job.error, sum(job.bytes_read.values()), job.work_s)

    def close(self, holder: str) -> None:
        """Ends a session and frees its slots.

        A slot that is being written is freed when its last request ends.
        """
        ended = Unavailable(f"the session {holder} has ended")
        self._io.give_up(ended, lambda job: job.holder == holder and not job.taken)
        for pool in self.pools.values():
            pool.slots.drop_holder(holder)

    def writing(self, holder: str) -> int:
        """Returns the number of a session's reads that have not ended."""
        return self._writing.get(holder, 0)

    def _cancel(self, holder: str, operation_ids: frozenset[int]) -> None:
        """Drops the named reads of a session that have not begun; reads that have begun go on."""
        self._io.give_up(
            Cancelled("the read was called off before it began"),
            lambda job: job.holder == holder and not job.begun and job.read.operation_id in operation_ids,
        )

    def _release(self, holder: str, release: Release) -> None:
        try:
            if release.pool not in self.pools:
                raise InvalidRequest("an expert store has no tensor slots")
            self.pools[release.pool].slots.release(release.slot, holder)
        except ZipMoeError as error:
            _LOG.warning("release_refused", session=holder, slot=str(release.slot), reason=error.message)

    def _start(self, holder: str, read: Read, begin_by_s: float) -> None:
        """Starts a read; raises a ZipMoeError if it is refused, and leaves all slots as they are then."""
        slots = _slots_of(read)
        plan = self._plan(read.key, read.parts)
        for pool, ref in slots:
            self.pools[pool].slots.check_write(ref)
        views = {Pool.E: memoryview(b""), Pool.SM: memoryview(b"")}
        for pool, ref in slots:
            self.pools[pool].slots.begin_write(ref, holder)
            views[pool] = self.pools[pool].arena.slot(ref.slot)
        self._writing[holder] = self._writing.get(holder, 0) + 1
        self._io.make_ready(ReadJob(read, holder, plan, views[Pool.E], views[Pool.SM], begin_by_s=begin_by_s))


def _slots_of(read: Read) -> list[tuple[Pool, SlotRef]]:
    return [(pool, ref) for pool, ref in ((Pool.E, read.e_slot), (Pool.SM, read.sm_slot)) if ref is not None]
