"""The I/O channel: order, completeness, failure and abandonment of reads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

import pytest

from services.expert_store.channel import ReadChannel
from services.expert_store.job import ReadJob
from services.expert_store.plan import read_planner
from tests.services.expert_store.gated_reader import GatedReader
from tests.services.tiny_store import TinyStore
from zipmoe.arena.arena import Arena
from zipmoe.errors import CorruptData, InternalError, Unavailable
from zipmoe.residency.base import Read
from zipmoe.types import ExpertKey, Part, SlotRef


class Bench:
    """A channel over a real store and arena, and the queue of ended jobs."""

    def __init__(self, store: TinyStore, threads: int) -> None:
        self.store = store
        self.reader = GatedReader(store)
        self.plan = read_planner(self.reader, 4096)
        self.arena = Arena.create("store", store.manifest.max_record_bytes, 4, lock=False)
        self.ended: SimpleQueue[ReadJob] = SimpleQueue()
        self.executor = ThreadPoolExecutor(threads, "io")
        self.channel = ReadChannel(self.reader, self.executor, threads, self.ended.put)
        self.channel.start()

    def submit(self, key: ExpertKey, slot: int, parts: Part = Part.ALL, holder: str = "a") -> ReadJob:
        read = Read(slot, key, parts, SlotRef("store", self.arena.epoch, slot, 1))
        job = ReadJob(read, holder, self.plan(key, parts), self.arena.slot(slot))
        self.channel.submit(job)
        return job

    def content(self, slot: int, count: int) -> bytes:
        with self.arena.slot(slot) as view:
            return bytes(view[:count])


@contextmanager
def bench(store: TinyStore, threads: int = 2) -> Iterator[Bench]:
    made = Bench(store, threads)
    try:
        yield made
    finally:
        made.reader.gate.set()
        made.channel.stop()
        made.executor.shutdown()
        made.reader.close()
        made.arena.close()


def test_a_read_brings_the_record_as_it_is_on_disk(tiny_store: TinyStore) -> None:
    with bench(tiny_store) as b:
        for key in tiny_store.experts:
            b.submit(key, 0)
            job = b.ended.get()
            record = tiny_store.manifest.record(key)
            assert job.error is None
            assert job.bytes_read == record.nbytes
            assert job.ended_s >= job.started_s > 0
            file = tiny_store.path / tiny_store.manifest.files[record.file].name
            assert b.content(0, record.nbytes) == file.read_bytes()[record.offset : record.offset + record.nbytes]


@pytest.mark.parametrize("parts", [Part.E, Part.SM])
def test_a_read_of_one_part_leaves_the_rest_of_the_slot_alone(tiny_store: TinyStore, parts: Part) -> None:
    with bench(tiny_store) as b:
        key = tiny_store.keys()[0]
        record = tiny_store.manifest.record(key)
        with b.arena.slot(0) as view:
            view[:] = b"\xaa" * len(view)
        b.submit(key, 0, parts)
        job = b.ended.get()
        begin, end = record.span(parts)
        assert job.bytes_read == end - begin
        content = b.content(0, record.nbytes)
        assert content[:begin] == b"\xaa" * begin
        assert content[end:] == b"\xaa" * (record.nbytes - end)
        assert b"\xaa" * 64 not in content[begin:end]


def test_requests_are_issued_in_the_order_of_submission_and_across_experts(tiny_store: TinyStore) -> None:
    with bench(tiny_store, threads=3) as b:
        b.reader.close_gate()
        first, second = tiny_store.keys()[:2]
        b.submit(first, 0, Part.E)  # two requests
        b.submit(second, 1)  # four requests
        offsets = [tiny_store.manifest.record(key).offset for key in (first, second)]
        issued = sorted(b.reader.arrived.get().file_offset for _ in range(3))
        assert issued == [offsets[0], offsets[0] + 4096, offsets[1]]  # the third thread does not wait for the first job
        assert b.reader.arrived.empty()  # as many in flight as there are threads
        assert b.channel.open_count == 2


def test_damage_fails_only_the_read_of_the_damaged_expert(own_store: TinyStore) -> None:
    damaged, sound = own_store.keys()[:2]
    own_store.damage(damaged)
    with bench(own_store) as b:
        b.submit(damaged, 0)
        b.submit(sound, 1)
        jobs = {job.read.key: job for job in (b.ended.get(), b.ended.get())}
        assert isinstance(jobs[damaged].error, CorruptData)
        assert "E-chunk 0 of matrix0" in jobs[damaged].error.message
        assert jobs[sound].error is None


def test_every_damaged_chunk_is_noticed(own_store: TinyStore) -> None:
    key = own_store.keys()[0]
    record = own_store.manifest.record(key)
    with bench(own_store) as b:
        for chunk in record.chunks(Part.ALL):
            for at in (chunk.offset, chunk.end - 1):
                own_store.damage(key, at)
                b.submit(key, 0)
                assert isinstance(b.ended.get().error, CorruptData)
                own_store.damage(key, at)  # flips the bit back
        b.submit(key, 0)
        assert b.ended.get().error is None


def test_a_file_that_was_cut_short_fails_the_reads_beyond_its_end(own_store: TinyStore) -> None:
    keys = own_store.keys()
    last = own_store.manifest.record(keys[-1])
    with bench(own_store) as b:
        with (own_store.path / own_store.manifest.files[last.file].name).open("r+b") as file:
            file.truncate(last.offset + 4096)
        b.submit(keys[-1], 0)
        b.submit(keys[0], 1)
        jobs = {job.read.key: job for job in (b.ended.get(), b.ended.get())}
        assert isinstance(jobs[keys[-1]].error, CorruptData)
        assert jobs[keys[0]].error is None


def test_a_failed_request_spares_the_disk_the_rest_of_its_read(tiny_store: TinyStore) -> None:
    with bench(tiny_store, threads=1) as b:
        b.reader.failure = CorruptData("broken")
        b.submit(tiny_store.keys()[0], 0)
        assert b.ended.get().error is b.reader.failure
        assert b.reader.arrived.qsize() == 1


def test_an_unforeseen_exception_fails_the_read_and_not_the_thread(tiny_store: TinyStore) -> None:
    with bench(tiny_store, threads=1) as b:
        b.reader.failure = ZeroDivisionError()
        b.submit(tiny_store.keys()[0], 0)
        assert isinstance(b.ended.get().error, InternalError)
        b.reader.failure = None
        b.submit(tiny_store.keys()[0], 0)
        assert b.ended.get().error is None


def test_an_abandoned_read_ends_with_its_last_request_in_flight(tiny_store: TinyStore) -> None:
    with bench(tiny_store, threads=2) as b:
        b.reader.close_gate()
        b.submit(tiny_store.keys()[0], 0, holder="gone")
        b.submit(tiny_store.keys()[1], 1, holder="gone")
        b.submit(tiny_store.keys()[2], 2, holder="stays")
        for _ in range(2):
            b.reader.arrived.get()
        b.channel.abandon("gone")
        assert b.ended.get().read.key == tiny_store.keys()[1]  # nothing of it was in flight
        assert b.ended.empty()  # two requests of the first one are
        b.reader.gate.set()
        rest = {job.read.key: job for job in (b.ended.get(), b.ended.get())}
        assert isinstance(rest[tiny_store.keys()[0]].error, Unavailable)
        assert rest[tiny_store.keys()[2]].error is None
        assert b.channel.open_count == 0
