"""The workers: sharing, order, failure."""

from __future__ import annotations

import gc

import pytest

from tests.services.decoder.decoder_bench import DecoderBench, bench
from tests.services.tiny_store import TinyStore, make_store
from zipmoe.errors import CorruptData, InternalError
from zipmoe.residency.pools import Recover, Urgency
from zipmoe.types import ExpertKey


@pytest.fixture
def two_sizes(tmp_path_factory: pytest.TempPathFactory) -> TinyStore:
    """One layer; nine E-chunks an expert, each of another size than those of the other matrix."""
    return make_store(
        tmp_path_factory.mktemp("sizes"), layers=1, experts=3, shapes=((24, 16), (24, 32), (24, 64)), e_chunks=3
    )


def submit(b: DecoderBench, key: ExpertKey, slot: int, urgency: Urgency = Urgency.NEEDED) -> Recover:
    """Reads an expert and asks for its recovery."""
    read = b.read(key, slot)
    b.apply((read,))
    b.finish_read(read)
    recovery = b.recover(key, slot, b.tensor(slot), urgency=urgency)
    b.apply((), (recovery,))
    return recovery


def test_all_workers_share_one_expert(two_sizes: TinyStore) -> None:
    with bench(two_sizes, workers=3) as b:
        b.codec.gate.clear()
        submit(b, two_sizes.keys()[0], 0)
        assert [b.codec.arrived.get() for _ in range(3)] == [8 * 16 * 2] * 3
        assert b.workers.busy_count == 3
        b.codec.gate.set()
        b.pump()
        assert b.holds(0, two_sizes.keys()[0])
        assert b.workers.busy_count == 0


def test_a_recovery_that_is_earlier_in_order_and_becomes_ready_late_overtakes(two_sizes: TinyStore) -> None:
    urgent, relaxed = two_sizes.keys()[:2]
    with bench(two_sizes, workers=1) as b:
        b.codec.gate.clear()
        reads = [b.read(urgent, 0), b.read(relaxed, 1)]
        recoveries = (b.recover(urgent, 0, b.tensor(0)), b.recover(relaxed, 1, b.tensor(1)))
        b.apply(tuple(reads), recoveries)
        b.finish_read(reads[1])
        b.codec.arrived.get()  # the relaxed one has begun
        b.finish_read(reads[0])
        b.codec.gate.set()
        b.pump(2)
        assert b.ends()[2:] == [recoveries[0].operation_id, recoveries[1].operation_id]
        assert b.holds(0, urgent)
        assert b.holds(1, relaxed)


def test_a_needed_recovery_overtakes_one_that_nobody_waits_for(two_sizes: TinyStore) -> None:
    with bench(two_sizes, workers=1) as b:
        b.codec.gate.clear()
        guess = submit(b, two_sizes.keys()[0], 0, Urgency.PREFETCH)
        b.codec.arrived.get()  # it has begun
        needed = submit(b, two_sizes.keys()[1], 1)
        b.codec.gate.set()
        b.pump(2)
        assert b.ends()[2:] == [needed.operation_id, guess.operation_id]


def test_a_chunk_that_does_not_decode_fails_only_its_expert(two_sizes: TinyStore) -> None:
    damaged, sound = two_sizes.keys()[:2]
    with bench(two_sizes) as b:
        reads = [b.read(damaged, 0), b.read(sound, 1)]
        b.apply(tuple(reads))
        for read in reads:
            b.finish_read(read)
        with b.chunks.e.slot(0) as slot:
            slot[:64] = bytes(64)
        recoveries = (b.recover(damaged, 0, b.tensor(0)), b.recover(sound, 1, b.tensor(1)))
        b.apply((), recoveries)
        b.pump(2)
        assert [type(b.report_of(each).error) for each in recoveries] == [CorruptData, type(None)]
        assert b.holds(1, sound)
        assert b.slots.counts()["free"] == 3


def test_no_failed_e_chunk_keeps_a_view_of_a_slot(two_sizes: TinyStore) -> None:
    """Also not the second failure of a recovery, whose error nobody sees: the bench closes its arenas at the end."""
    key = two_sizes.keys()[0]
    gc.disable()
    try:
        with bench(two_sizes, workers=2) as b:
            read = b.read(key, 0)
            b.apply((read,))
            b.finish_read(read)
            with b.chunks.e.slot(0) as slot:
                slot[:] = bytes(len(slot))
            b.codec.gate.clear()
            recovery = b.recover(key, 0, b.tensor(0))
            b.apply((), (recovery,))
            for _ in range(2):
                b.codec.arrived.get()
            b.codec.gate.set()
            b.pump()
            assert isinstance(b.report_of(recovery).error, CorruptData)
    finally:
        gc.enable()


def test_an_unforeseen_exception_fails_the_recovery_and_not_the_worker(two_sizes: TinyStore) -> None:
    with bench(two_sizes, workers=1) as b:
        b.codec.failure = ZeroDivisionError()
        failed = submit(b, two_sizes.keys()[0], 0)
        b.pump()
        assert isinstance(b.report_of(failed).error, InternalError)
        b.codec.failure = None
        fine = submit(b, two_sizes.keys()[1], 1)
        b.pump()
        assert b.report_of(fine).error is None


def test_an_expert_of_one_tensor_reports_only_its_end(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = make_store(tmp_path_factory.mktemp("one"), layers=1, experts=1, shapes=((96, 64),))
    with bench(store, workers=3) as b:
        submit(b, store.keys()[0], 0)
        assert b.pump_one()
        assert b.holds(0, store.keys()[0])
