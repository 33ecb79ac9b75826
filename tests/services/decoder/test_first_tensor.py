"""A fetch session: what begins, and is reported, when only an expert's first tensor is there."""

from __future__ import annotations

import pytest

from tests.services.decoder.decoder_bench import DecoderBench, bench
from tests.services.tiny_store import TinyStore, tensor_spans
from zipmoe.errors import CorruptData, SlotLeased, Unavailable
from zipmoe.residency.pools import Operations, Read, Recover
from zipmoe.types import Part

FREE = {"free": 4, "writing": 0, "held": 0}


def kinds(b: DecoderBench, operation: Read | Recover) -> list[bool]:
    """Of each report of an operation whether it was of the first tensor only."""
    return [result.first_tensor_only for result in b.reports_of(operation)]


def holds_first(b: DecoderBench, slot: int, read: Read) -> bool:
    begin, end = next(tensor_spans(b.store.manifest, read.key))
    with b.tensors.slot(slot) as view:
        return bool(view[begin:end] == b.store.experts[read.key][begin:end])


def test_a_read_that_nothing_waits_for_reports_its_first_tensor(tiny_store: TinyStore) -> None:
    with bench(tiny_store) as b:
        read = b.read(tiny_store.keys()[0], 0)
        b.apply((read,))
        b.read_first_tensor(read)
        assert kinds(b, read) == [True]
        b.finish_read(read)
        assert kinds(b, read) == [True, False]


def test_a_recovery_begins_with_the_first_tensor_while_the_rest_is_read(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store, verify=True) as b:
        read, recovery = b.read(key, 0), b.recover(key, 0, b.tensor(0))
        b.apply((read,), (recovery,))
        b.read_first_tensor(read)
        assert not b.pump_one()
        assert (kinds(b, read), kinds(b, recovery)) == ([], [True])
        assert holds_first(b, 0, read)
        assert b.codec.arrived.qsize() == len(tiny_store.manifest.record(key).tensors[0].e_chunks)
        b.finish_read(read)
        b.pump()
        assert (kinds(b, read), kinds(b, recovery)) == ([False], [True, False])
        assert b.holds(0, key)


def test_a_recovery_asked_for_between_the_two_begins_at_once(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read, recovery = b.read(key, 0), b.recover(key, 0, b.tensor(0))
        b.apply((read,))
        b.read_first_tensor(read)
        b.apply((), (recovery,))
        assert not b.pump_one()
        b.finish_read(read)
        b.pump()
        assert (kinds(b, read), kinds(b, recovery)) == ([True, False], [True, False])
        assert b.holds(0, key)


@pytest.mark.parametrize("first", [Part.E, Part.SM])
def test_a_recovery_begins_when_both_reads_have_brought_the_first_tensor(tiny_store: TinyStore, first: Part) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        early, late = b.read(key, 0, parts=first), b.read(key, 0, parts=Part.ALL & ~first)
        recovery = b.recover(key, 0, b.tensor(0))
        b.apply((early, late), (recovery,))
        b.read_first_tensor(early)
        assert b.codec.arrived.empty()
        b.read_first_tensor(late)
        assert not b.pump_one()
        b.finish_read(early)
        assert b.events.empty()
        b.finish_read(late)
        b.pump()
        assert kinds(b, recovery) == [True, False]
        assert b.holds(0, key)


def test_what_was_read_whole_earlier_counts_for_the_first_tensor(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        e_read, sm_read = b.read(key, 0, parts=Part.E), b.read(key, 0, parts=Part.SM)
        b.apply((e_read,))
        b.finish_read(e_read)
        recovery = b.recover(key, 0, b.tensor(0))
        b.apply((sm_read,), (recovery,))
        b.read_first_tensor(sm_read)
        assert not b.pump_one()
        b.finish_read(sm_read)
        b.pump()
        assert kinds(b, recovery) == [True, False]
        assert b.holds(0, key)


def test_a_read_that_fails_after_its_first_tensor_fails_the_recovery_that_has_begun(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read, recovery = b.read(key, 0), b.recover(key, 0, b.tensor(0))
        b.apply((read,), (recovery,))
        b.read_first_tensor(read)
        assert not b.pump_one()
        error = CorruptData("broken")
        b.finish_read(read, error)
        b.pump()
        assert b.ends() == [read.operation_id, recovery.operation_id]
        assert (b.report_of(read).error, b.report_of(recovery).error) == (error, error)
        assert b.slots.counts() == FREE
        assert b.workers.open_count == 0


def test_a_failure_after_the_first_tensor_counts_when_no_worker_reads_the_slots_any_more(tiny_store: TinyStore) -> None:
    """The store has freed the slots: what is read into them next would be written under the codec."""
    key = tiny_store.keys()[0]
    with bench(tiny_store, workers=1) as b:
        read, recovery = b.read(key, 0), b.recover(key, 0, b.tensor(0))
        early, late = b.read(key, 0, 2), b.read(key, 0, 3)
        b.codec.gate.clear()
        b.apply((read,), (recovery,))
        b.read_first_tensor(read)
        b.codec.arrived.get()
        error = CorruptData("broken")
        b.finish_read(read, error)
        assert b.ends() == []
        b.apply((early,))
        assert isinstance(b.report_of(early).error, SlotLeased)
        b.codec.gate.set()
        b.pump()
        assert b.ends() == [early.operation_id, read.operation_id, recovery.operation_id]
        assert [b.report_of(each).error for each in (read, recovery)] == [error, error]
        b.apply((late,))
        assert b.sent == [Operations(reads=[read]), Operations(reads=[late])]
        assert b.slots.counts() == FREE


def test_a_first_tensor_that_cannot_be_recovered_is_reported_after_its_read(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read, recovery = b.read(key, 0), b.recover(key, 0, b.tensor(0))
        b.apply((read,), (recovery,))
        b.codec.failure = CorruptData("not a chunk")
        b.read_first_tensor(read)
        assert b.pump_one()
        assert b.reported == []
        b.finish_read(read)
        assert b.ends() == [read.operation_id, recovery.operation_id]
        assert (b.report_of(read).error, b.report_of(recovery).error) == (None, b.codec.failure)
        assert kinds(b, recovery) == [False]
        assert b.slots.counts() == FREE


def test_a_second_tensor_that_cannot_be_recovered_fails_everything(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store, verify=True) as b:
        read, recovery = b.read(key, 0), b.recover(key, 0, b.tensor(0))
        b.apply((read,), (recovery,))
        b.read_first_tensor(read)
        assert not b.pump_one()
        b.codec.failure = CorruptData("not a chunk")
        b.finish_read(read)
        b.pump()
        assert kinds(b, recovery) == [True, False]
        assert b.report_of(recovery).error is b.codec.failure
        assert b.slots.counts() == FREE


@pytest.mark.parametrize("failed_first", [False, True])
def test_a_session_that_ends_between_the_two_leaves_nothing_behind(tiny_store: TinyStore, failed_first: bool) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read, recovery = b.read(key, 0), b.recover(key, 0, b.tensor(0))
        b.apply((read,), (recovery,))
        b.codec.failure = CorruptData("not a chunk") if failed_first else None
        b.read_first_tensor(read)
        assert b.pump_one() is failed_first
        b.session.end(Unavailable("gone"))
        if not failed_first:
            b.pump()
        assert b.session.idle
        assert b.slots.counts() == FREE
        assert b.workers.open_count == 0


def test_a_whole_expert_reports_its_first_tensor_too_but_never_twice(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store, workers=1) as b:
        read = b.read(key, 0)
        b.apply((read,))
        b.finish_read(read)
        recovery = b.recover(key, 0, b.tensor(0))
        b.apply((), (recovery,))
        b.pump()
        assert kinds(b, recovery) == [True, False]
