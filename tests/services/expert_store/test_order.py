"""The I/O threads: which read goes first, and which are called off."""

from __future__ import annotations

from tests.services.expert_store.store_bench import StoreBench, bench
from tests.services.tiny_store import TinyStore
from zipmoe.errors import Cancelled
from zipmoe.residency.pools import Urgency
from zipmoe.types import ExpertKey, Part


def issued(b: StoreBench, count: int) -> list[ExpertKey]:
    """Lets so many requests through, one after the other; returns whose they were."""
    keys = {
        (record.file, record.offset + page): key
        for key in b.store.experts
        for record in [b.store.manifest.record(key)]
        for page in range(0, record.nbytes, 4096)
    }
    found = []
    for _ in range(count):
        request = b.reader.arrived.get(timeout=30.0)
        found.append(keys[request.file, request.file_offset])
        b.reader.let_through()
    return found


def test_requests_are_issued_in_the_order_of_submission_and_across_experts(tiny_store: TinyStore) -> None:
    with bench(tiny_store, threads=3) as b:
        b.reader.close_gate()
        first, second = tiny_store.keys()[:2]
        b.submit(first, 0, Part.E)  # two requests
        b.submit(second, 1)  # four requests
        offsets = [tiny_store.manifest.record(key).offset for key in (first, second)]
        found = sorted(b.reader.arrived.get().file_offset for _ in range(3))
        assert found == [offsets[0], offsets[0] + 4096, offsets[1]]  # the third thread does not wait for the first job
        assert b.reader.arrived.empty()  # as many in flight as there are threads
        assert b.io.open_count == 2


def test_a_needed_read_overtakes_prefetches_at_the_next_request(tiny_store: TinyStore) -> None:
    begun, waiting, needed, also_needed = tiny_store.keys()[:4]
    with bench(tiny_store, threads=1) as b:
        b.reader.close_gate()
        b.submit(begun, 0, urgency=Urgency.PREFETCH)
        b.submit(waiting, 1, urgency=Urgency.PREFETCH)
        first = b.reader.arrived.get()
        b.submit(needed, 2)
        b.submit(also_needed, 3)
        b.reader.arrived.put(first)
        order = issued(b, 16)
        assert order == [begun] + [needed] * 4 + [also_needed] * 4 + [begun] * 3 + [waiting] * 4
        assert [b.next_ended().read.key for _ in range(4)] == [needed, also_needed, begun, waiting]


def test_a_read_that_has_not_begun_is_called_off_without_a_request(tiny_store: TinyStore) -> None:
    begun, dropped, guess, kept = tiny_store.keys()[:4]
    with bench(tiny_store, threads=1) as b:
        b.reader.close_gate()
        b.submit(begun, 0)
        b.reader.arrived.put(b.reader.arrived.get())  # its first request is at the disk
        b.submit(dropped, 1)
        b.submit(guess, 2, urgency=Urgency.PREFETCH)
        b.submit(kept, 3)
        b.cancel("a", 0, 1, 2, 77)
        for key in (dropped, guess):
            job = b.next_ended()
            assert job.read.key == key
            assert isinstance(job.error, Cancelled)
            assert (job.started_s, sum(job.bytes_read.values())) == (0.0, 0)
        assert issued(b, 8) == [begun] * 4 + [kept] * 4
        rest = [b.next_ended(), b.next_ended()]
        assert [(job.read.key, job.error) for job in rest] == [(begun, None), (kept, None)]
        assert b.io.open_count == 0


def test_one_session_cannot_call_off_the_reads_of_another(tiny_store: TinyStore) -> None:
    with bench(tiny_store, threads=1) as b:
        b.reader.close_gate()
        b.submit(tiny_store.keys()[0], 0, holder="a")
        b.submit(tiny_store.keys()[1], 1, holder="b")
        b.cancel("a", 1)
        b.reader.open_gate()
        assert [b.next_ended().error, b.next_ended().error] == [None, None]
