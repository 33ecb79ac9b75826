"""A fetch session: dependencies between reads and recoveries, leases, and its end."""

from __future__ import annotations

from tests.services.decoder.decoder_bench import bench
from tests.services.tiny_store import TinyStore
from zipmoe.errors import Cancelled, CorruptData, DeadlineExceeded, SlotLeased, StaleSlot, Unavailable
from zipmoe.residency.pools import Operations, Pool, Release, Urgency
from zipmoe.types import Part

FREE = {"free": 4, "writing": 0, "held": 0}


def test_a_recovery_begins_when_its_read_has_ended(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read = b.read(key, 0)
        recovery = b.recover(key, 0, b.tensor(1))
        b.apply((read,), (recovery,))
        assert b.sent == [Operations(reads=[read])]
        assert b.codec.arrived.empty()
        b.finish_read(read)
        b.pump()
        assert b.ends() == [read.operation_id, recovery.operation_id]
        assert (b.report_of(read).error, b.report_of(read).bytes_read, b.report_of(read).work_s) == (None, 10, 0.5)
        assert b.report_of(recovery).error is None
        assert b.report_of(recovery).work_s > 0
        assert b.holds(1, key)
        assert b.slots.counts()["held"] == 1
        assert b.workers.busy_s > 0


def test_an_expert_whose_chunks_are_there_is_recovered_again_without_a_read(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read = b.read(key, 0)
        b.apply((read,))
        b.finish_read(read)
        again = b.recover(key, 0, b.tensor(0)), b.recover(key, 0, b.tensor(0, 2))
        b.apply((), again[:1])
        b.pump()
        b.apply((), again[1:], tensor_releases=(b.tensor(0),))
        b.pump()
        assert len(b.sent) == 1
        assert [b.report_of(each).error for each in (read, *again)] == [None] * 3
        assert b.holds(0, key)


def test_a_recovery_waits_for_two_reads(tiny_store: TinyStore) -> None:
    """The parts come into slots of different numbers, by reads that end in either order."""
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        for turn, order in enumerate((1, -1)):
            slot = 2 * turn
            e_read, sm_read = b.read(key, slot, parts=Part.E), b.read(key, slot + 1, parts=Part.SM)
            recovery = b.recover(key, slot + 1, b.tensor(turn), e_slot=b.chunks.e_ref(slot))
            b.apply((e_read, sm_read), (recovery,))
            first, second = [e_read, sm_read][::order]
            b.finish_read(first)
            assert b.codec.arrived.empty()
            b.finish_read(second)
            b.pump()
            assert b.ends()[-3:] == [first.operation_id, second.operation_id, recovery.operation_id]
            assert b.holds(turn, key)
            while not b.codec.arrived.empty():
                b.codec.arrived.get()


def test_chunks_that_were_read_long_ago_and_chunks_that_are_read_now_make_an_expert(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        e_read = b.read(key, 2, parts=Part.E)
        b.apply((e_read,))
        b.finish_read(e_read)
        too_early = b.recover(key, 0, b.tensor(0), e_slot=b.chunks.e_ref(2))
        b.apply((), (too_early,))
        assert isinstance(b.report_of(too_early).error, StaleSlot)
        sm_read = b.read(key, 0, parts=Part.SM)
        recovery = b.recover(key, 0, b.tensor(0), e_slot=b.chunks.e_ref(2))
        b.apply((sm_read,), (recovery,))
        assert b.sent[-1] == Operations(reads=[sm_read])
        b.finish_read(sm_read)
        b.pump()
        assert b.report_of(recovery).error is None
        assert b.holds(0, key)


def test_a_failed_read_fails_its_recoveries_with_the_same_error(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read = b.read(key, 0)
        waiting = b.recover(key, 0, b.tensor(0))
        late = b.recover(key, 0, b.tensor(1))
        b.apply((read,), (waiting,))
        error = CorruptData("broken")
        b.finish_read(read, error)
        b.apply((), (late,))
        assert b.ends() == [each.operation_id for each in (read, waiting, late)]
        assert [b.report_of(each).error for each in (read, waiting, late)] == [error] * 3
        assert b.slots.counts() == FREE


def test_a_recovery_is_failed_by_one_of_its_reads_and_reported_after_both(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        e_read, sm_read = b.read(key, 0, parts=Part.E), b.read(key, 0, parts=Part.SM)
        recovery = b.recover(key, 0, b.tensor(0))
        b.apply((e_read, sm_read), (recovery,))
        error = CorruptData("broken")
        b.finish_read(e_read, error)
        assert b.ends() == [e_read.operation_id]
        b.finish_read(sm_read)
        assert b.ends() == [e_read.operation_id, sm_read.operation_id, recovery.operation_id]
        assert (b.report_of(sm_read).error, b.report_of(recovery).error) == (None, error)
        assert b.slots.counts() == FREE
        b.apply(releases=[Release(Pool.SM, b.chunks.sm_ref(0))])  # nothing pins it any more
        assert b.sent[-1].releases == [Release(Pool.SM, b.chunks.sm_ref(0))]


def test_reads_that_are_called_off_go_to_the_store_and_fail_what_waits_for_them(tiny_store: TinyStore) -> None:
    key, other = tiny_store.keys()[:2]
    with bench(tiny_store) as b:
        ended, dropped = b.read(other, 1), b.read(key, 0)
        waiting = b.recover(key, 0, b.tensor(0))
        b.apply((ended, dropped), (waiting,))
        b.finish_read(ended)
        b.apply(cancels=(77, ended.operation_id))  # unknown, and known no more
        assert len(b.sent) == 1
        later = b.read(other, 2)
        b.apply((later,), cancels=(dropped.operation_id, later.operation_id))
        assert b.sent[-1] == Operations(cancels=[dropped.operation_id], reads=[later])
        error = Cancelled("too late")
        b.finish_read(dropped, error)
        assert [b.report_of(each).error for each in (dropped, waiting)] == [error] * 2
        b.finish_read(later)
        assert b.report_of(later).error is None
        assert b.slots.counts() == FREE


def test_chunk_slots_released_under_a_recovery_go_back_when_the_recovery_has_ended(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read = b.read(key, 0)
        b.apply((read,), (b.recover(key, 0, b.tensor(0)),))
        b.codec.gate.clear()
        b.finish_read(read)
        b.apply(releases=b.chunks.releases(0))
        assert b.sent == [Operations(reads=[read])]
        b.codec.gate.set()
        b.pump()
        assert b.sent == [Operations(reads=[read]), Operations(releases=b.chunks.releases(0))]
        assert b.holds(0, key)


def test_slots_released_under_a_read_go_back_at_once_and_hold_nothing(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read = b.read(key, 0)
        b.apply((read,))
        b.apply(releases=b.chunks.releases(0)[:1])
        assert b.sent[-1] == Operations(releases=b.chunks.releases(0)[:1])
        b.finish_read(read)
        assert b.report_of(read).error is None
        recovery = b.recover(key, 0, b.tensor(0))
        b.apply((), (recovery,))
        assert isinstance(b.report_of(recovery).error, StaleSlot)


def test_the_late_report_of_a_read_says_nothing_of_a_later_read_under_the_same_reference(tiny_store: TinyStore) -> None:
    key, other = tiny_store.keys()[:2]
    with bench(tiny_store) as b:
        early, late = b.read(key, 0), b.read(other, 0)
        recovery = b.recover(other, 0, b.tensor(0))
        b.apply((early,))
        b.apply((late,), (recovery,), releases=b.chunks.releases(0))
        b.finish_read(early)
        assert b.codec.arrived.empty()
        error = StaleSlot("the slot has reached generation 1")
        b.finish_read(late, error)
        assert b.ends() == [early.operation_id, late.operation_id, recovery.operation_id]
        assert [b.report_of(each).error for each in (early, late, recovery)] == [None, error, error]


def test_a_recovery_whose_read_has_failed_unpins_no_later_use_of_the_slot(tiny_store: TinyStore) -> None:
    """The reference of a read that the store has refused may be used again."""
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        refused, slow = b.read(key, 0, parts=Part.E), b.read(key, 0, parts=Part.SM)
        failed = b.recover(key, 0, b.tensor(0))
        b.apply((refused, slow), (failed,))
        b.finish_read(refused, SlotLeased("held"))
        again, other = b.read(key, 0, parts=Part.E), b.read(key, 1, parts=Part.SM)
        running = b.recover(key, 1, b.tensor(1), e_slot=b.chunks.e_ref(0))
        b.apply((again, other))
        b.finish_read(again)
        b.finish_read(other)
        b.codec.gate.clear()
        b.apply((), (running,))
        b.codec.arrived.get()
        b.finish_read(slow)
        assert isinstance(b.report_of(failed).error, SlotLeased)
        release = Release(Pool.E, b.chunks.e_ref(0))
        b.apply(releases=[release])
        assert b.sent[-1] == Operations(reads=[again, other])
        b.codec.gate.set()
        b.pump()
        assert b.sent[-1] == Operations(releases=[release])
        assert b.holds(1, key)


def test_a_damaged_chunk_that_slips_through_is_caught_by_verification(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store, verify=True) as b:
        for generation, damage in ((1, False), (2, True)):
            read = b.read(key, 0, generation)
            b.apply((read,), releases=b.chunks.releases(0, generation - 1))
            b.finish_read(read)
            if damage:
                b.damage(read, tiny_store.manifest.record(key).tensors[1].sm_chunk.offset)
            recovery = b.recover(key, 0, b.tensor(generation), generation)
            b.apply((), (recovery,))
            b.pump()
            assert isinstance(b.report_of(recovery).error, CorruptData) is damage
        assert b.slots.counts()["held"] == 1


def test_an_ended_session_frees_what_waits_at_once_and_what_runs_when_it_has_ended(tiny_store: TinyStore) -> None:
    running, queued, waiting, done = tiny_store.keys()[:4]
    with bench(tiny_store, workers=1) as b:
        reads = [b.read(key, slot) for slot, key in enumerate((done, running, queued, waiting))]
        b.apply(tuple(reads), (b.recover(done, 0, b.tensor(0)),))
        b.finish_read(reads[0])
        b.pump()
        b.codec.gate.clear()
        b.apply((), tuple(b.recover(read.key, slot, b.tensor(slot)) for slot, read in enumerate(reads) if slot))
        units = len(tiny_store.manifest.record(done).tensors[0].e_chunks) * 2
        for _ in range(units):
            b.codec.arrived.get()
        b.finish_read(reads[1])
        b.finish_read(reads[2])
        b.codec.arrived.get()
        assert b.slots.counts() == {"free": 0, "writing": 3, "held": 1}
        reported = len(b.reported)

        b.session.end(Unavailable("gone"))
        assert b.slots.counts() == {"free": 2, "writing": 2, "held": 0}
        b.pump()  # the queued one, which never ran
        assert b.slots.counts() == {"free": 3, "writing": 1, "held": 0}
        assert not b.session.idle
        b.codec.gate.set()
        b.pump()
        assert b.session.idle
        assert b.slots.counts() == FREE
        assert len(b.reported) == reported  # nobody is there to be told
        assert b.workers.open_count == 0

        b.session = b.open("session 2")
        read = b.read(done, 0, 2)
        b.apply((read,), (b.recover(done, 0, b.tensor(1, 2), 2),))
        b.finish_read(read)
        b.pump()
        assert b.holds(1, done)


def test_the_store_is_told_the_deadline_of_the_batch(tiny_store: TinyStore) -> None:
    with bench(tiny_store) as b:
        read = b.read(tiny_store.keys()[0], 0)
        b.apply((read,), deadline_s=5.0)
        assert b.sent == [Operations(reads=[read], deadline_s=5.0)]
        b.finish_read(read)


def test_a_recovery_whose_deadline_has_passed_when_its_chunks_are_there_is_not_begun(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read, recovery = b.read(key, 0), b.recover(key, 0, b.tensor(0))
        guess = b.recover(key, 0, b.tensor(1), urgency=Urgency.PREFETCH)
        b.apply((read,), (recovery, guess), deadline_s=0.0)
        b.finish_read(read)
        b.pump(2)
        assert isinstance(b.report_of(recovery).error, DeadlineExceeded)
        assert b.report_of(recovery).work_s == 0.0
        assert b.report_of(guess).error is None
        assert b.slots.counts() == {**FREE, "free": 3, "held": 1}
        assert b.workers.open_count == 0
        again = b.recover(key, 0, b.tensor(0, 2))  # its chunks are as good as before
        b.apply((), (again,))
        b.pump()
        assert b.report_of(again).error is None
        assert b.holds(0, key)


def test_a_late_read_ends_the_recovery_that_waits_for_it(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read, recovery = b.read(key, 0), b.recover(key, 0, b.tensor(0))
        b.apply((read,), (recovery,))
        b.finish_read(read, DeadlineExceeded("late"))
        assert b.ends() == [read.operation_id, recovery.operation_id]
        assert isinstance(b.report_of(recovery).error, DeadlineExceeded)
        assert b.slots.counts() == FREE
