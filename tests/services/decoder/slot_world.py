"""The played services beside the model of their slots: what happens, happens in both, and they are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from structlog.testing import capture_logs

from tests.services.decoder.played_services import PASSED_S, PlayedServices
from tests.services.decoder.slot_model import CHUNKS, SlotModel, slots_of
from zipmoe.errors import Unavailable
from zipmoe.residency.pools import Operations, Pool, Read, Recover, Release
from zipmoe.services.decoder.job import RecoverJob
from zipmoe.services.expert_store.job import ReadJob

SLOT_COUNTS = {Pool.E: 2, Pool.SM: 2, Pool.TENSOR: 2}
PATIENCE = 4  # what has been asked for ends in two rounds: the reads, and what begins after them


class SlotWorld:
    """Carries out what may happen; `check` tells whether each slot has the readers and writers that it may have.

    Attributes:
        over: whether the decoder's session has ended.
    """

    def __init__(self) -> None:
        self.services = PlayedServices(SLOT_COUNTS)
        self.model = SlotModel(self.services.memory)
        self._content: dict[tuple[Pool, int], ReadJob] = {}  # the last read that the store has begun into each slot
        self._sources: dict[RecoverJob, list[ReadJob]] = {}  # what was in the chunk slots when a recovery began
        self._begin_session()

    def __repr__(self) -> str:
        services = self.services
        under_way = [*services.down, *services.up, *services.disk.events, *services.workers.events]
        return "\n".join(["", *services.state(), *map(str, under_way)])

    # The router

    def send(
        self,
        cancels: Sequence[int] = (),
        releases: Sequence[Release] = (),
        reads: Sequence[Read] = (),
        *,
        late: bool = False,
    ) -> None:
        """The decoder receives cancels, releases and reads: what is refused changes nothing and is reported once."""
        services, before, deadline_s = self.services, self.services.state(), PASSED_S if late else math.inf
        known = [operation_id for operation_id in cancels if operation_id in self.model.reads]
        released = [not self.over and self.model.release(release) for release in releases]
        begun = [read for read in reads if not self.over and self.model.read(read)]
        batch = Operations([*cancels], [*releases], [*reads], deadline_s=deadline_s)
        refusals = _tell(services.session.begin, batch)
        if not any(released) and not begun:
            assert services.state() == before
        if not self.over:
            assert refusals == released.count(False)
            assert services.refused() == [read.operation_id for read in reads if read not in begun]
        self._take_sent(begun, known, deadline_s)

    def recover(self, fetch: Recover, *, late: bool = False) -> None:
        """The decoder receives a recovery: likewise."""
        services, before = self.services, self.services.state()
        batch = Operations(recoveries=[fetch], deadline_s=PASSED_S if late else math.inf)
        begun = not self.over and self.model.recover(fetch)
        assert _tell(services.session.recover, batch) == 0
        assert begun or services.state() == before
        assert services.refused() == ([] if begun or self.over else [fetch.operation_id])
        self._take_sent()

    def _take_sent(self, reads: Sequence[Read] = (), cancels: Sequence[int] = (), deadline_s: float = math.inf) -> None:
        """The store is told of a release when the slot was released and nothing pins it, and of no other."""
        sent = self.services.sent
        assert [release for batch in sent for release in batch.releases] == self.model.to_release
        assert [read for batch in sent for read in batch.reads] == [*reads]
        assert [operation_id for batch in sent for operation_id in batch.cancels] == [*cancels]
        assert all(batch.deadline_s == deadline_s for batch in sent)
        sent.clear()
        self.model.to_release.clear()

    # The streams and the event loops

    def arrivals(self) -> list[Callable[[], None]]:
        """What may arrive next: messages and reports of each kind do so in order."""
        services = self.services
        receivers = [
            (services.down, self._store_hears),
            (services.up, self._decoder_hears_of_a_read),
            (services.workers.events, self._decoder_hears_of_a_recovery),
            (services.disk.events, self._store_hears_of_a_read),
        ]
        return [receive for queue, receive in receivers if queue]

    def everything_arrives(self) -> None:
        while arrivals := self.arrivals():
            arrivals[-1]()
            self.check()

    def _store_hears(self) -> None:
        """The store receives releases and reads: what is refused changes nothing and is reported once."""
        services, batch, before = self.services, self.services.down[0], self.services.state()
        released = [self.model.release_at_store(release) for release in batch.releases]
        begun = [read for read in batch.reads if self.model.read_at_store(read)]
        with capture_logs() as logs:
            refused = services.store_applies()
        assert len(logs) == released.count(False)
        assert refused == [read.operation_id for read in batch.reads if read not in begun]
        if not any(released) and not begun:
            assert services.state() == before
        jobs = services.disk.open[len(services.disk.open) - len(begun) :]
        assert [job.read for job in jobs] == begun
        for job in jobs:
            self._jobs[job.read.operation_id] = job
            for pool, ref in slots_of(job.read):
                view = job.e_slot if pool is Pool.E else job.sm_slot
                assert view[0] == services.memory[pool].byte_of(ref.slot)
                self._content[pool, ref.slot] = job

    def _store_hears_of_a_read(self) -> None:
        event = self.services.disk_reports()
        for pool, ref in slots_of(event.job.read) if event.ended else []:
            self.model.leases[pool].finish_write(ref, ok=event.job.error is None)

    def _decoder_hears_of_a_read(self) -> None:
        assert _tell(self.services.session.read_reported, self.services.up.popleft()) == 0
        self._take_reports()

    def _decoder_hears_of_a_recovery(self) -> None:
        event = self.services.workers.events.popleft()
        assert _tell(self.services.session.recover_reported, event) == 0
        self._take_reports()
        if self.over and event.ended:
            self.model.leases[Pool.TENSOR].finish_write(event.job.recovery.tensor_slot, ok=False)

    def _take_reports(self) -> None:
        assert not (self.over and self.services.reports)
        for result in self.services.reports:
            self.model.reported(result)
        self.services.reports.clear()
        self._take_sent()

    # The workers

    def worker_takes(self, job: RecoverJob) -> None:
        memory, fetch = self.services.memory, job.recovery
        if self.services.workers.take(job):
            slots = zip(Pool, (fetch.e_slot, fetch.sm_slot, fetch.tensor_slot), strict=True)
            assert self.services.workers.touched == tuple(memory[pool].byte_of(ref.slot) for pool, ref in slots)

    def workers_finish(self, job: RecoverJob) -> None:
        """Recovers the E-chunks that are ready."""
        workers = self.services.workers
        while job in workers.open and not job.taken:
            self.worker_takes(job)
        for work in [work for work in workers.running if work[0] is job]:
            workers.settle(work, None)

    # The ends of sessions

    def end_session(self) -> None:
        """The decoder ends its session, as when the router is gone or the store is."""
        workers = self.services.workers
        running = [*workers.open, *(event.job for event in workers.events if event.ended)]
        self.over = True
        assert _tell(self.services.session.end, Unavailable("gone")) == 0
        self.model.end_session({job.recovery.operation_id for job in running})
        self._take_reports()

    def close_store(self) -> None:
        """The store ends its session, whatever the decoder does."""
        self.services.close_store()
        self.model.end_session_at_store()

    def open_session(self) -> None:
        """Opens the next session, when nobody but the disk is at work for the last one."""
        assert self.over and self.services.session.idle
        while self.services.down:
            self._store_hears()
        self.close_store()
        self.services.open()
        self._begin_session()

    def _begin_session(self) -> None:
        self.over = False
        self.model.open_session(self.services.holder)
        self._jobs: dict[int, ReadJob] = {}  # reads that the store has accepted

    def wind_up(self) -> None:
        """Lets everything end: then every operation has been reported, and what is released is free."""
        disk, workers = self.services.disk, self.services.workers
        if not self.services.linked and not self.over:
            self.end_session()
        for _ in range(PATIENCE):
            for read in list(disk.open):
                disk.end(read, None)
            for recovery in list(workers.open):
                self.workers_finish(recovery)
            self.everything_arrives()
        assert not (disk.open or workers.open), "something does not end"
        if not self.over:
            assert not self.model.reads and not self.model.recoveries, "an operation was never reported"
            self.send(releases=[Release(use.pool, use.ref) for use in self.model.uses])
            self.everything_arrives()
            assert self._is_free(), "a released slot is not free"
            self.end_session()
        assert self.services.session.idle
        self.close_store()
        self.check()
        assert self._is_free(), "an ended session has a slot"

    def _is_free(self) -> bool:
        return {pool: table.counts()["free"] for pool, table in self.services.tables.items()} == SLOT_COUNTS

    # What always holds

    def check(self) -> None:
        for pool, table in self.services.tables.items():
            assert table.counts() == self.model.leases[pool].counts()
            assert table.first_generation == self.model.leases[pool].last_generation + 1
        self._check_writers()
        self._check_recoveries()
        self._check_router()
        if not self.over:
            uses = [use for use in self.model.uses if use.pool in CHUNKS]
            assert self.services.pins() == {(use.pool, use.ref): len(use.pins) for use in uses}
            assert self.services.session.idle == (not self.model.recoveries)

    def _check_writers(self) -> None:
        """No slot has two writers."""
        written = [(pool, ref.slot) for job in self.services.disk.open for pool, ref in slots_of(job.read)]
        written += [(Pool.TENSOR, job.recovery.tensor_slot.slot) for job in self.services.workers.open]
        assert len(written) == len(set(written)), "two write a slot"

    def _check_recoveries(self) -> None:
        """The chunks of a recovery are there when it begins, and nothing is read over them before it has ended."""
        disk, workers = self.services.disk, self.services.workers
        for job in workers.open:
            fetch = job.recovery
            present = [self._content.get((Pool.E, fetch.e_slot.slot)), self._content.get((Pool.SM, fetch.sm_slot.slot))]
            if job not in self._sources:
                assert disk.begun_well.issuperset(present), "a recovery has begun without chunks"
                self._sources[job] = [read for read in present if read is not None]
            sources = self._sources[job]
            assert (sources[0].read.e_slot, sources[1].read.sm_slot) == (fetch.e_slot, fetch.sm_slot)
            assert present == sources, "a slot is written under a recovery"
            if job in workers.whole:
                assert not any(read in disk.open or read.error for read in sources), "a recovery has not all chunks"
            if not self.over:
                used = self.model.recoveries[fetch.operation_id]
                assert all(use in self.model.uses for use in used[:2]), (
                    "the next use of a slot may begin under a recovery"
                )

    def _check_router(self) -> None:
        """What the router may read is not written, and what its recoveries are to read stays there until then."""
        writers = {job.recovery.tensor_slot.slot: job.recovery.operation_id for job in self.services.workers.open}
        for use in self.model.uses:
            if use.pool is Pool.TENSOR:
                writer = writers.get(use.ref.slot)
                own = writer == use.operation_id and not use.whole
                assert writer is None or own or not use.begun, "a slot is written under the router"
                continue
            job = self._jobs.get(use.operation_id)
            if job is not None and job.error is None:
                assert self._content[use.pool, use.ref.slot] is job, "a slot is written before its release"
            assert not use.whole or (job is not None and job not in self.services.disk.open)


def _tell(method: Callable[[Any], object], argument: object) -> int:
    """Calls the decoder; returns the number of releases that it has refused, of which only its log tells."""
    with capture_logs() as logs:
        method(argument)
    assert all(entry["event"] == "release_refused" for entry in logs), logs
    return len(logs)
