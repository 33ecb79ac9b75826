"""One router's session: which recovery waits for which read, and what may be overwritten when.

    begin(operations)    releases first, then reads: all to the store in one message
    recover(fetches)     the recoveries of the same batch
    read_ended           starts, or fails, the recoveries that waited for the read
    recover_ended        the tensor slot is held by the session or free; a chunk slot released meanwhile goes back
    end                  gives up what is queued; what is running ends by itself and frees its slot then

Every operation is reported exactly once, unless the session ends first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from services.decoder.chunk_slots import ChunkSlots
from services.decoder.job import RecoverJob
from services.decoder.operations import FetchResult
from services.decoder.outbox import Outbox
from services.decoder.plan import RecoverPlan
from services.decoder.store_link import ChunkArena
from services.decoder.workers import WorkerPool
from services.expert_store.client import ReadResult, StoreSession
from zipmoe.arena.arena import Arena
from zipmoe.arena.lease import SlotTable
from zipmoe.errors import InvalidRequest, ZipMoeError
from zipmoe.residency.base import Operations, Read, Recover
from zipmoe.types import ExpertKey, SlotRef

_log = structlog.get_logger()


@dataclass(frozen=True)
class TensorOwner:
    """What outlives a session: the tensor arena with its leases, the workers, and how experts are recovered.

    `verify` tells whether recovered tensors are compared with the checksums of the checkpoint's.
    """

    plan: Callable[[ExpertKey], RecoverPlan]
    arena: Arena
    slots: SlotTable
    workers: WorkerPool
    verify: bool


class FetchSession:
    """Decides over the fetches of one session; obeys or refuses, never chooses.

    Thread: the event loop's only; nothing here waits.
    """

    def __init__(
        self,
        holder: str,
        owner: TensorOwner,
        store: StoreSession,
        chunk_arena: ChunkArena,
        outbox: Outbox,
    ) -> None:
        self.holder = holder
        self._owner = owner
        self._store = store
        self._chunk_arena = chunk_arena
        self._outbox = outbox
        self._chunks = ChunkSlots(chunk_arena.description)
        self._reads: dict[int, Read] = {}
        self._rank = 0
        self._open_count = 0  # recoveries that have a tensor slot to write and have not ended
        self._over = False

    @property
    def idle(self) -> bool:
        """Whether no recovery is waiting or running."""
        return self._open_count == 0

    def begin(self, operations: Operations) -> None:
        """Carries out the releases and reads of one batch; `recover` does the rest.

        What is refused is reported at once, everything else when it has ended.
        """
        if self._over:
            return
        for ref in operations.tensor_releases:
            self._release_tensor(ref)
        releases = [ref for ref in operations.chunk_releases if self._release_chunk(ref)]
        reads = [read for read in operations.reads if self._begin_read(read)]
        if releases or reads:
            self._store.send(releases, reads)

    def recover(self, fetches: Sequence[Recover]) -> None:
        """Carries out recoveries, each once its chunks are there."""
        if self._over:
            return
        for fetch in fetches:
            self._begin_recovery(fetch)

    def read_ended(self, result: ReadResult) -> None:
        """Takes a read's result from the store."""
        read = self._reads.pop(result.operation_id, None)
        if read is None:
            _log.warning("the store reports a read that was not asked for", operation=result.operation_id)
            return
        waiting = self._chunks.end_read(read.chunk_slot, result.error)
        report = self._outbox.put_later if waiting else self._outbox.put
        report(FetchResult(result.operation_id, result.error, result.bytes_read, result.read_s))
        for job in waiting:
            if result.error is None:
                self._submit(job)
            else:
                job.stop(result.error)
                self.recover_ended(job)

    def recover_ended(self, job: RecoverJob) -> None:
        """Takes a recovery back, from the workers or without its having begun."""
        self._owner.slots.finish_write(job.fetch.tensor_slot, ok=job.error is None)
        self._open_count -= 1
        if self._over:
            return
        if self._chunks.unpin(job.fetch.chunk_slot):
            self._store.send([job.fetch.chunk_slot], [])
        work_s = job.ended_s - job.started_s if job.started_s else 0.0
        self._outbox.put(FetchResult(job.fetch.operation_id, job.error, 0, work_s))

    def end(self, error: ZipMoeError) -> None:
        """Ends the session: its slots are free at once, those that are being written when their workers are done.

        The chunk slots stay leased at the store until the caller closes the store session, which it must not do before
        `idle`: workers may still be reading them.
        """
        if self._over:
            return
        self._over = True
        for read in self._reads.values():
            for job in self._chunks.end_read(read.chunk_slot, error):
                job.stop(error)
                self.recover_ended(job)
        self._reads.clear()
        self._owner.workers.abandon()
        self._owner.slots.drop_holder(self.holder)

    def _release_tensor(self, ref: SlotRef) -> None:
        try:
            self._owner.slots.release(ref, self.holder)
        except ZipMoeError as refusal:
            _log.warning("release refused", session=self.holder, slot=str(ref), reason=refusal.message)

    def _release_chunk(self, ref: SlotRef) -> bool:
        try:
            return self._chunks.release(ref)
        except ZipMoeError as refusal:
            _log.warning("release refused", session=self.holder, slot=str(ref), reason=refusal.message)
            return False

    def _begin_read(self, read: Read) -> bool:
        if read.operation_id in self._reads:
            taken = InvalidRequest(f"operation id {read.operation_id} is already in use by another read")
            self._outbox.put(FetchResult(read.operation_id, taken))
            return False
        try:
            self._chunks.begin_read(read)
        except ZipMoeError as refusal:
            self._outbox.put(FetchResult(read.operation_id, refusal))
            return False
        self._reads[read.operation_id] = read
        return True

    def _begin_recovery(self, fetch: Recover) -> None:
        try:
            plan = self._owner.plan(fetch.key)
            chunk = self._chunks.complete(fetch.chunk_slot, fetch.key)
            self._owner.slots.begin_write(fetch.tensor_slot, self.holder)
        except ZipMoeError as refusal:
            self._outbox.put(FetchResult(fetch.operation_id, refusal))
            return
        self._rank += 1
        self._open_count += 1
        chunk.pin_count += 1
        job = RecoverJob(fetch, self.holder, self._rank, plan)
        if chunk.reading:
            chunk.waiting.append(job)
        else:
            self._submit(job)

    def _submit(self, job: RecoverJob) -> None:
        chunk_slot = self._chunk_arena.view.slot(job.fetch.chunk_slot.slot)
        tensor_slot = self._owner.arena.slot(job.fetch.tensor_slot.slot)
        job.attach(chunk_slot, tensor_slot, verify=self._owner.verify)
        self._owner.workers.submit(job)
