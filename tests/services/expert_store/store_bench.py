"""I/O threads over a real store and real arenas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

from tests.services.expert_store.gated_reader import GatedReader
from tests.services.slots import ChunkArenas
from tests.services.tiny_store import TinyStore
from zipmoe.process.job import JobEvent
from zipmoe.process.task_pool import TaskPool
from zipmoe.residency.pools import Operations, Urgency
from zipmoe.services.expert_store.job import ReadJob
from zipmoe.services.expert_store.measured_disk import MeasuredDisk
from zipmoe.services.expert_store.plan import read_planner
from zipmoe.services.expert_store.session import ReadSessions
from zipmoe.types import ExpertKey, Part

EVENT_TIMEOUT_S = 30.0


class StoreBench:
    """The threads, and the queue of what they report."""

    def __init__(self, store: TinyStore, threads: int, request_bytes: int) -> None:
        self.store = store
        self.reader = GatedReader(store)
        self.plan = read_planner(self.reader, request_bytes)
        self.arenas = ChunkArenas(store.manifest, 4)
        self.events: SimpleQueue[JobEvent[ReadJob]] = SimpleQueue()
        self.executor = ThreadPoolExecutor(threads, "io")
        self.disk = MeasuredDisk(self.reader)
        self.io = TaskPool(self.disk.read, self.executor, threads, self.events.put)
        self.io.start()
        self.sessions = ReadSessions(self.arenas.e, self.arenas.sm, self.io, self.plan)

    def submit(
        self,
        key: ExpertKey,
        slot: int,
        parts: Part = Part.ALL,
        *,
        holder: str = "a",
        urgency: Urgency = Urgency.NEEDED,
        begin_by_s: float = math.inf,
    ) -> ReadJob:
        """Begins a read into slot `slot` of both arenas; that is also its operation id."""
        read = self.arenas.read(slot, key, slot, parts=parts, urgency=urgency)
        e_slot = self.arenas.e.slot(slot) if parts & Part.E else memoryview(b"")
        sm_slot = self.arenas.sm.slot(slot) if parts & Part.SM else memoryview(b"")
        job = ReadJob(read, holder, self.plan(key, parts), e_slot, sm_slot, begin_by_s=begin_by_s)
        self.io.make_ready(job)
        return job

    def cancel(self, holder: str, *operation_ids: int) -> None:
        assert not self.sessions.apply(holder, Operations(cancels=list(operation_ids)))

    def next_event(self) -> JobEvent[ReadJob]:
        return self.events.get(timeout=EVENT_TIMEOUT_S)

    def next_ended(self) -> ReadJob:
        """Skips what is reported before the next end of a read."""
        while not (event := self.next_event()).ended:
            pass
        return event.job

    def record_on_disk(self, key: ExpertKey) -> bytes:
        record = self.store.manifest.record(key)
        file = self.store.path / self.store.manifest.files[record.file].name
        return file.read_bytes()[record.offset : record.offset + record.nbytes]


@contextmanager
def bench(store: TinyStore, threads: int = 2, request_bytes: int = 4096) -> Iterator[StoreBench]:
    made = StoreBench(store, threads, request_bytes)
    try:
        yield made
    finally:
        made.reader.open_gate()
        made.io.stop()
        made.executor.shutdown()
        made.reader.close()
        made.arenas.close()
