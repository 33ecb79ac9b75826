"""Carries out a router's session: starts each recovery after its reads and frees slots after their last use.

    begin(operations)    cancels and releases first, then reads: all to the store in one message
    recover(operations)  recoveries of the same batch
    read_reported        starts, or fails, the recoveries that waited for the read
    recover_reported     the tensor slot is held by the session or free; released chunk slots go back to the store
    end                  gives up queued recoveries; a running recovery ends by itself and then frees its slot

The end of every operation is reported exactly once, unless the session ends first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from zipmoe.arena.leased_arena import LeasedArena
from zipmoe.errors import InvalidRequest, ZipMoeError
from zipmoe.process.job import JobEvent
from zipmoe.process.task_pool import TaskPool
from zipmoe.residency.pools import Completed, Operations, Pool, Read, Recover, Release
from zipmoe.services.decoder.chunk_slots import ChunkSlots
from zipmoe.services.decoder.job import RecoverJob, Slots
from zipmoe.services.decoder.outbox import Outbox
from zipmoe.services.decoder.pending import ChunkSlot, PendingRecovery, ReadStage
from zipmoe.services.decoder.plan import RecoverPlan
from zipmoe.services.decoder.recovered_form import RecoveredForm
from zipmoe.services.decoder.store_link import StoreArenas
from zipmoe.services.expert_store.client import StoreSession
from zipmoe.types import ExpertKey

_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True)
class TensorOwner:
    """Parts that outlive a session: the planner, the tensor arena with its leases, the workers and the form.

    `tensors` is None where the decoder recovers nothing. `verify` tells whether recovered tensors are compared with the
    checkpoint's checksums.
    """

    plan: Callable[[ExpertKey], RecoverPlan]
    tensors: LeasedArena | None
    workers: TaskPool[RecoverJob]
    form: RecoveredForm
    verify: bool


class RouterSession:
    """Accepts or refuses the reads, recoveries and releases of a session; never chooses a slot.

    Thread: the event loop's only; no method waits.
    """

    def __init__(
        self, holder: str, owner: TensorOwner, store: StoreSession, arenas: StoreArenas, outbox: Outbox
    ) -> None:
        self.holder = holder
        self._owner = owner
        self._store = store
        self._arenas = arenas
        self._outbox = outbox
        self._chunks = {Pool.E: ChunkSlots(arenas.e.description), Pool.SM: ChunkSlots(arenas.sm.description)}
        self._reads: dict[int, list[tuple[Pool, ChunkSlot]]] = {}
        self._pending: dict[RecoverJob, PendingRecovery] = {}
        self._failures: list[Completed] = []  # reports that wait until no worker reads the slots
        self._over = False

    @property
    def idle(self) -> bool:
        """Whether no recovery is waiting or running."""
        return not self._pending

    def begin(self, operations: Operations) -> None:
        """Carries out the cancels, releases and reads of a batch; `recover` does the rest.

        A refused read is reported at once, any other read when the store reports on it.
        """
        if self._over:
            return
        cancels = [operation_id for operation_id in operations.cancels if operation_id in self._reads]
        releases = [release for release in operations.releases if self._release(release)]
        reads = [read for read in operations.reads if self._begin_read(read)]
        if cancels or releases or reads:
            self._store.send(Operations(cancels, releases, reads, deadline_s=operations.deadline_s))

    def recover(self, operations: Operations) -> None:
        """Carries out the recoveries of a batch, each after its chunks arrive and unless the deadline has passed."""
        if self._over:
            return
        for recovery in operations.recoveries:
            self._begin_recovery(recovery, operations.begin_by_s(recovery))

    def read_reported(self, result: Completed) -> None:
        """Receives a report of the store on a read.

        The store has freed the slots of a failed read. The failure therefore counts, and is reported, only when no
        worker reads the slots any more: until then the slots are in use, and nothing else may be read into them.
        """
        if self._over:
            return
        slots = self._reads.get(result.operation_id)
        if slots is None:
            _LOG.warning("unknown_read_reported", operation=result.operation_id)
            return
        waiting = dict.fromkeys(pending for _, chunk in slots for pending in chunk.waiting)
        if result.error is not None:
            for pending in waiting:
                self._fail(pending, result.error)
            if any(pending.begun and not pending.over for pending in waiting):
                self._failures.append(result)
                return
        stage = ReadStage.FIRST_TENSOR
        if not result.first_tensor_only:
            del self._reads[result.operation_id]
            stage = ReadStage.WHOLE if result.error is None else ReadStage.FAILED
        for pool, chunk in slots:
            self._chunks[pool].reach(chunk, stage, result.error)
        if not waiting:
            self._outbox.put(result)
        elif not result.first_tensor_only:
            self._outbox.put_later(result)
        for pending in waiting:
            self._advance(pending)

    def recover_reported(self, event: JobEvent[RecoverJob]) -> None:
        """Receives a report of the workers on a recovery."""
        pending = self._pending[event.job]
        if event.ended:
            pending.over = True
            self._advance(pending)
            failures, self._failures = self._failures, []
            for failure in failures:
                self.read_reported(failure)
        elif not self._over:
            self._outbox.put(Completed(event.job.recovery.operation_id, None, first_tensor_only=True))

    def end(self, error: ZipMoeError) -> None:
        """Ends the session and frees its tensor slots. A slot that is being written is freed when its recovery ends.

        The chunk slots stay leased at the store until the caller closes the store session. The caller must wait for
        `idle` before, since workers may still be reading chunk slots.
        """
        if self._over:
            return
        self._over = True
        self._reads.clear()
        for pending in list(self._pending.values()):
            self._fail(pending, error)
            self._advance(pending)
        if self._owner.tensors is not None:
            self._owner.tensors.slots.drop_holder(self.holder)

    def _release(self, release: Release) -> bool:
        """Carries out a release; returns whether the store is to be told now."""
        try:
            if release.pool is not Pool.TENSOR:
                return self._chunks[release.pool].release(release.slot)
            self._tensors().slots.release(release.slot, self.holder)
        except ZipMoeError as refusal:
            _LOG.warning("release_refused", session=self.holder, slot=str(release.slot), reason=refusal.message)
        return False

    def _tensors(self) -> LeasedArena:
        if self._owner.tensors is None:
            raise InvalidRequest("this decoder has no tensor slots: it was set up to recover no expert")
        return self._owner.tensors

    def _begin_read(self, read: Read) -> bool:
        slots = [(pool, ref) for pool, ref in ((Pool.E, read.e_slot), (Pool.SM, read.sm_slot)) if ref is not None]
        try:
            if read.operation_id in self._reads:
                raise InvalidRequest(f"operation id {read.operation_id} is already in use by another read")
            for pool, ref in slots:
                self._chunks[pool].check_read(ref)
        except ZipMoeError as refusal:
            self._outbox.put(Completed(read.operation_id, refusal))
            return False
        self._reads[read.operation_id] = [(pool, self._chunks[pool].begin_read(ref, read.key)) for pool, ref in slots]
        return True

    def _begin_recovery(self, recovery: Recover, begin_by_s: float) -> None:
        try:
            tensors = self._tensors()
            plan = self._owner.plan(recovery.key)
            e_chunks = self._chunks[Pool.E].find(recovery.e_slot, recovery.key)
            sm_chunks = self._chunks[Pool.SM].find(recovery.sm_slot, recovery.key)
            tensors.slots.begin_write(recovery.tensor_slot, self.holder)
        except ZipMoeError as refusal:
            self._outbox.put(Completed(recovery.operation_id, refusal))
            return
        slots = Slots(
            self._arenas.e.view.slot(recovery.e_slot.slot),
            self._arenas.sm.view.slot(recovery.sm_slot.slot),
            tensors.arena.slot(recovery.tensor_slot.slot),
        )
        owner = self._owner
        job = RecoverJob(recovery, plan, slots, owner.form, begin_by_s=begin_by_s, verify=owner.verify)
        pending = self._pending[job] = PendingRecovery(job, e_chunks, sm_chunks)
        pending.attach()
        self._advance(pending)

    def _fail(self, pending: PendingRecovery, error: ZipMoeError) -> None:
        if pending.begun:
            self._owner.workers.give_up(error, lambda job: job is pending.job)
        elif not pending.over:
            pending.job.stop(error)
            pending.job.let_go()
            pending.over = True

    def _advance(self, pending: PendingRecovery) -> None:
        """Advances a recovery as far as the present chunks allow, or finishes an ended one."""
        if pending.over:
            if self._over or not pending.reading:
                self._finish(pending)
        elif pending.stage >= ReadStage.FIRST_TENSOR and not self._over:
            pending.begun = True
            self._owner.workers.make_ready(pending.job, first_tensor_only=pending.stage == ReadStage.FIRST_TENSOR)

    def _finish(self, pending: PendingRecovery) -> None:
        job, recovery = pending.job, pending.job.recovery
        del self._pending[job]
        self._tensors().slots.finish_write(recovery.tensor_slot, ok=job.error is None)
        if self._over:
            return
        slots = ((Pool.E, pending.e_chunks), (Pool.SM, pending.sm_chunks))
        if releases := [Release(pool, chunk.ref) for pool, chunk in slots if self._chunks[pool].unpin(chunk)]:
            self._store.send(Operations(releases=releases))
        self._outbox.put(Completed(recovery.operation_id, job.error, 0, job.work_s))
