"""The I/O threads: completeness, failure and abandonment of reads."""

from __future__ import annotations

import gc
import math

import pytest

from tests.services.expert_store.store_bench import bench
from tests.services.tiny_store import TinyStore, make_store
from zipmoe.errors import CorruptData, DeadlineExceeded, InternalError, Unavailable
from zipmoe.types import Part

PAGE = 4096  # each tensor's E-chunks, and each SM-chunk, of the tiny store's experts


@pytest.mark.parametrize("request_bytes", [PAGE, 3 * PAGE, 64 * PAGE])
def test_a_read_brings_the_record_as_it_is_on_disk(tiny_store: TinyStore, request_bytes: int) -> None:
    """With one page a request none spans E and SM, with three the first one does, with many all is one request."""
    with bench(tiny_store, request_bytes=request_bytes) as b:
        for key in tiny_store.experts:
            b.arenas.fill(0, 0xAA)
            b.submit(key, 0)
            job = b.next_ended()
            record = tiny_store.manifest.record(key)
            assert job.error is None
            assert job.bytes_read == {Part.E: record.e_bytes, Part.SM: record.nbytes - record.e_bytes}
            assert job.ended_s >= job.started_s > 0
            assert b.arenas.content(0, record) == b.record_on_disk(key)
        assert b.disk.busy.seconds > 0


@pytest.mark.parametrize("parts", [Part.E, Part.SM])
def test_a_read_of_one_part_leaves_the_other_slot_alone(tiny_store: TinyStore, parts: Part) -> None:
    with bench(tiny_store) as b:
        key = tiny_store.keys()[0]
        record = tiny_store.manifest.record(key)
        b.arenas.fill(0, 0xAA)
        b.submit(key, 0, parts)
        job = b.next_ended()
        begin, end = record.span(parts)
        assert job.bytes_read[parts] == sum(job.bytes_read.values()) == end - begin
        content = b.arenas.content(0, record)
        assert content[:begin] == b"\xaa" * begin
        assert content[end:] == b"\xaa" * (record.nbytes - end)
        assert content[begin:end] == b.record_on_disk(key)[begin:end]


def test_damage_fails_only_the_read_of_the_damaged_expert(own_store: TinyStore) -> None:
    damaged, sound = own_store.keys()[:2]
    own_store.damage(damaged)
    with bench(own_store) as b:
        b.submit(damaged, 0)
        b.submit(sound, 1)
        jobs = {job.read.key: job for job in (b.next_ended(), b.next_ended())}
        error = jobs[damaged].error
        assert isinstance(error, CorruptData)
        assert "E-chunk 0 of matrix0" in error.message
        assert jobs[sound].error is None


@pytest.mark.parametrize("request_bytes", [PAGE, 3 * PAGE])
def test_every_damaged_chunk_is_noticed(own_store: TinyStore, request_bytes: int) -> None:
    key = own_store.keys()[0]
    record = own_store.manifest.record(key)
    with bench(own_store, request_bytes=request_bytes) as b:
        for chunk in record.chunks(Part.ALL):
            for at in (chunk.offset, chunk.end - 1):
                own_store.damage(key, at)
                b.submit(key, 0)
                assert isinstance(b.next_ended().error, CorruptData)
                own_store.damage(key, at)  # flips the bit back
        b.submit(key, 0)
        assert b.next_ended().error is None


def test_a_file_that_was_cut_short_fails_the_reads_beyond_its_end(own_store: TinyStore) -> None:
    keys = own_store.keys()
    last = own_store.manifest.record(keys[-1])
    with bench(own_store) as b:
        with (own_store.path / own_store.manifest.files[last.file].name).open("r+b") as file:
            file.truncate(last.offset + 4096)
        b.submit(keys[-1], 0)
        b.submit(keys[0], 1)
        jobs = {job.read.key: job for job in (b.next_ended(), b.next_ended())}
        assert isinstance(jobs[keys[-1]].error, CorruptData)
        assert jobs[keys[0]].error is None


def test_no_failed_request_keeps_a_view_of_a_slot(own_store: TinyStore) -> None:
    """Also not the second failure of a read, whose error nobody sees: the bench closes its arenas at the end."""
    key = own_store.keys()[0]
    record = own_store.manifest.record(key)
    gc.disable()
    try:
        with bench(own_store, threads=2) as b:
            b.reader.close_gate()
            b.submit(key, 0)
            for _ in range(2):
                b.reader.arrived.get()
            with (own_store.path / own_store.manifest.files[record.file].name).open("r+b") as file:
                file.truncate(record.offset)
            b.reader.open_gate()
            assert isinstance(b.next_ended().error, CorruptData)
    finally:
        gc.enable()


def test_a_failed_request_spares_the_disk_the_rest_of_its_read(tiny_store: TinyStore) -> None:
    with bench(tiny_store, threads=1) as b:
        b.reader.failure = CorruptData("broken")
        b.submit(tiny_store.keys()[0], 0)
        assert b.next_ended().error is b.reader.failure
        assert b.reader.arrived.qsize() == 1


def test_an_unforeseen_exception_fails_the_read_and_not_the_thread(tiny_store: TinyStore) -> None:
    with bench(tiny_store, threads=1) as b:
        b.reader.failure = ZeroDivisionError()
        b.submit(tiny_store.keys()[0], 0)
        assert isinstance(b.next_ended().error, InternalError)
        b.reader.failure = None
        b.submit(tiny_store.keys()[0], 0)
        assert b.next_ended().error is None


def test_an_abandoned_read_ends_with_its_last_request_in_flight(tiny_store: TinyStore) -> None:
    with bench(tiny_store, threads=2) as b:
        b.reader.close_gate()
        b.submit(tiny_store.keys()[0], 0, holder="gone")
        b.submit(tiny_store.keys()[1], 1, holder="gone")
        b.submit(tiny_store.keys()[2], 2, holder="stays")
        for _ in range(2):
            b.reader.arrived.get()
        b.sessions.close("gone")
        assert b.next_ended().read.key == tiny_store.keys()[1]  # nothing of it was in flight
        assert b.events.empty()  # two requests of the first one are
        b.reader.open_gate()
        rest = {job.read.key: job for job in (b.next_ended(), b.next_ended())}
        assert isinstance(rest[tiny_store.keys()[0]].error, Unavailable)
        assert rest[tiny_store.keys()[2]].error is None
        assert b.io.open_count == 0


def test_the_first_tensor_is_reported_once_and_before_the_end(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store, threads=1) as b:
        b.reader.close_gate()
        b.submit(key, 0)
        for _ in range(3):  # [E0][E1][SM0], then [SM1] waits
            assert b.events.empty()
            b.reader.arrived.get()
            b.reader.let_through()
        b.reader.arrived.get()
        event = b.next_event()
        assert (event.job.read.key, event.ended) == (key, False)
        assert b.events.empty()
        b.reader.let_through()
        event = b.next_event()
        assert (event.ended, event.job.error) == (True, None)


@pytest.mark.parametrize("parts", [Part.E, Part.SM])
def test_a_read_of_one_part_reports_the_first_tensors_chunks_of_that_part(tiny_store: TinyStore, parts: Part) -> None:
    with bench(tiny_store, threads=1) as b:
        b.submit(tiny_store.keys()[0], 0, parts)
        assert [b.next_event().ended for _ in range(2)] == [False, True]


def test_a_read_that_brings_everything_at_once_reports_only_its_end(tiny_store: TinyStore) -> None:
    with bench(tiny_store, request_bytes=64 * PAGE) as b:
        b.submit(tiny_store.keys()[0], 0)
        assert b.next_event().ended
        assert b.events.empty()


def test_an_expert_of_one_tensor_reports_only_its_end(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = make_store(tmp_path_factory.mktemp("one"), layers=1, experts=1, shapes=((96, 64),))
    with bench(store, threads=1) as b:
        b.submit(store.keys()[0], 0)
        assert b.next_event().ended
        assert b.events.empty()


def test_damage_behind_the_first_tensor_fails_the_read_after_the_report(own_store: TinyStore) -> None:
    key = own_store.keys()[0]
    own_store.damage(key, own_store.manifest.record(key).tensors[1].sm_chunk.offset)
    with bench(own_store, threads=1) as b:
        b.submit(key, 0)
        assert not b.next_event().ended
        event = b.next_event()
        assert event.ended
        assert isinstance(event.job.error, CorruptData)


def test_a_damaged_first_tensor_is_never_reported_as_there(own_store: TinyStore) -> None:
    key = own_store.keys()[0]
    own_store.damage(key, own_store.manifest.record(key).tensors[0].sm_chunk.offset)
    with bench(own_store, threads=1) as b:
        b.submit(key, 0)
        event = b.next_event()
        assert event.ended
        assert isinstance(event.job.error, CorruptData)
        assert b.events.empty()


def test_a_read_whose_deadline_has_passed_when_its_turn_comes_ends_without_a_request(tiny_store: TinyStore) -> None:
    first, late, last = tiny_store.keys()[:3]
    with bench(tiny_store, threads=1, request_bytes=64 * PAGE) as b:
        b.reader.close_gate()
        b.submit(first, 0)
        b.reader.arrived.get()
        b.submit(late, 1, begin_by_s=0.0)
        b.submit(last, 2)
        assert b.io.open_count == 3
        b.reader.open_gate()
        jobs = {job.read.key: job for job in (b.next_ended(), b.next_ended(), b.next_ended())}
        assert isinstance(jobs[late].error, DeadlineExceeded)
        assert (jobs[late].started_s, sum(jobs[late].bytes_read.values())) == (0.0, 0)
        assert jobs[first].error is jobs[last].error is None
        assert b.reader.arrived.qsize() == 1
        assert b.io.open_count == 0


def test_a_read_that_has_begun_is_finished_whatever_its_deadline(tiny_store: TinyStore) -> None:
    with bench(tiny_store, threads=1) as b:
        b.reader.close_gate()
        job = b.submit(tiny_store.keys()[0], 0, begin_by_s=math.inf)
        b.reader.arrived.get()
        job.begin_by_s = 0.0
        b.reader.open_gate()
        assert b.next_ended().error is None
