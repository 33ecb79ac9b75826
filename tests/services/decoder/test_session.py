"""A fetch session: dependencies between reads and recoveries, leases, refusals, and its end."""

from __future__ import annotations

from tests.services.decoder.bench import bench
from tests.services.tiny_store import TinyStore
from zipmoe.errors import CorruptData, InvalidRequest, NotFound, SlotLeased, StaleSlot, Unavailable
from zipmoe.types import ExpertKey, Part

FREE = {"free": 4, "writing": 0, "held": 0, "pinned": 0}


def test_a_recovery_begins_when_its_read_has_ended(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read = b.read(key, b.chunk(0))
        recovery = b.recover(key, b.chunk(0), b.tensor(1))
        b.apply((read,), (recovery,))
        assert b.sent == [([], [read])]
        assert b.codec.arrived.empty()
        b.finish_read(read)
        b.pump()
        assert [result.operation_id for result in b.reported] == [read.operation_id, recovery.operation_id]
        assert (b.report_of(read).error, b.report_of(read).bytes_read, b.report_of(read).work_s) == (None, 10, 0.5)
        assert b.report_of(recovery).error is None
        assert b.report_of(recovery).work_s > 0
        assert b.holds(1, key)
        assert b.slots.counts()["held"] == 1


def test_an_expert_whose_chunks_are_there_is_recovered_again_without_a_read(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read = b.read(key, b.chunk(0))
        b.apply((read,))
        b.finish_read(read)
        b.apply((), (b.recover(key, b.chunk(0), b.tensor(0)),))
        b.pump()
        b.apply((), (b.recover(key, b.chunk(0), b.tensor(0, 2)),), (), (b.tensor(0),))
        b.pump()
        assert len(b.sent) == 1
        assert [result.error for result in b.reported] == [None] * 3
        assert b.holds(0, key)


def test_a_failed_read_fails_its_recoveries_with_the_same_error(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read = b.read(key, b.chunk(0))
        waiting = b.recover(key, b.chunk(0), b.tensor(0))
        late = b.recover(key, b.chunk(0), b.tensor(1))
        b.apply((read,), (waiting,))
        error = CorruptData("broken")
        b.finish_read(read, error)
        b.apply((), (late,))
        assert [b.report_of(each).error for each in (read, waiting, late)] == [error] * 3
        assert b.slots.counts() == FREE


def test_a_recovery_from_stale_content_is_refused(tiny_store: TinyStore) -> None:
    key, other = tiny_store.keys()[:2]
    with bench(tiny_store) as b:
        first, second = b.read(key, b.chunk(0)), b.read(other, b.chunk(0, 2))
        b.apply((first,))
        b.finish_read(first)
        b.apply((second,), (), (b.chunk(0),))
        b.finish_read(second)
        refused = [
            (b.recover(key, b.chunk(0), b.tensor(0)), StaleSlot),  # that use of the slot is over
            (b.recover(key, b.chunk(0, 3), b.tensor(0)), StaleSlot),  # that one has not begun
            (b.recover(key, b.chunk(1), b.tensor(0)), StaleSlot),  # never read into
            (b.recover(key, b.chunk(0, 2), b.tensor(0)), InvalidRequest),  # another expert is in it
            (b.recover(ExpertKey(9, 9), b.chunk(0, 2), b.tensor(0)), NotFound),
        ]
        b.apply((), tuple(fetch for fetch, _ in refused))
        assert [type(b.report_of(fetch).error) for fetch, _ in refused] == [kind for _, kind in refused]
        assert b.slots.counts() == FREE


def test_recovering_over_a_leased_tensor_slot_is_refused(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read = b.read(key, b.chunk(0))
        b.apply((read,), (b.recover(key, b.chunk(0), b.tensor(0)),))
        while_written = b.recover(key, b.chunk(0), b.tensor(0, 2))
        b.apply((), (while_written,))
        b.finish_read(read)
        b.pump()
        while_held = b.recover(key, b.chunk(0), b.tensor(0, 3))
        stale = b.recover(key, b.chunk(0), b.tensor(0))
        b.apply((), (while_held, stale))
        assert isinstance(b.report_of(while_written).error, SlotLeased)
        assert isinstance(b.report_of(while_held).error, SlotLeased)
        assert isinstance(b.report_of(stale).error, StaleSlot)
        assert b.holds(0, key)


def test_a_chunk_slot_that_is_released_under_a_recovery_goes_back_when_the_recovery_has_ended(
    tiny_store: TinyStore,
) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read = b.read(key, b.chunk(0))
        b.apply((read,), (b.recover(key, b.chunk(0), b.tensor(0)),))
        b.codec.gate.clear()
        b.finish_read(read)
        b.apply((), (), (b.chunk(0),))
        assert b.sent == [([], [read])]
        b.codec.gate.set()
        b.pump()
        assert b.sent == [([], [read]), ([b.chunk(0)], [])]
        assert b.holds(0, key)


def test_parts_that_were_read_one_after_the_other_into_a_slot_add_up(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        e_read = b.read(key, b.chunk(0), Part.E)
        b.apply((e_read,))
        b.finish_read(e_read)
        incomplete = b.recover(key, b.chunk(0), b.tensor(0))
        b.apply((), (incomplete,))
        assert isinstance(b.report_of(incomplete).error, InvalidRequest)
        sm_read = b.read(key, b.chunk(0, 2), Part.SM)
        recovery = b.recover(key, b.chunk(0, 2), b.tensor(0))
        b.apply((sm_read,), (recovery,), (b.chunk(0),))
        assert b.sent[-1] == ([b.chunk(0)], [sm_read])
        b.finish_read(sm_read)
        b.pump()
        assert b.report_of(recovery).error is None
        assert b.holds(0, key)


def test_parts_of_different_experts_do_not_add_up(tiny_store: TinyStore) -> None:
    key, other = tiny_store.keys()[:2]
    with bench(tiny_store) as b:
        for read in (b.read(key, b.chunk(0), Part.E), b.read(other, b.chunk(0, 2), Part.SM)):
            b.apply((read,), (), (b.chunk(0),))
            b.finish_read(read)
        recovery = b.recover(other, b.chunk(0, 2), b.tensor(0))
        b.apply((), (recovery,))
        assert isinstance(b.report_of(recovery).error, InvalidRequest)


def test_reads_that_cannot_be_meant_for_this_arena_never_reach_the_store(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        sound = b.read(key, b.chunk(0))
        refused = [
            (b.read(key, b.chunk(0)._replace(arena_epoch=b.chunks.epoch + 1)), StaleSlot),
            (b.read(key, b.tensor(0)), StaleSlot),
            (b.read(key, b.chunk(4)), NotFound),
            (b.read(key, b.chunk(0)), StaleSlot),
        ]
        b.apply((sound, *(read for read, _ in refused)))
        assert b.sent == [([], [sound])]
        assert [type(b.report_of(read).error) for read, _ in refused] == [kind for _, kind in refused]


def test_a_damaged_chunk_that_slips_through_is_caught_by_verification(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store, verify=True) as b:
        for generation, damage in ((1, False), (2, True)):
            read = b.read(key, b.chunk(0, generation))
            b.apply((read,), (), (b.chunk(0, generation - 1),))
            b.finish_read(read)
            if damage:
                with b.chunks.slot(0) as slot:
                    slot[tiny_store.manifest.record(key).tensors[1].sm_chunk.offset] ^= 1
            recovery = b.recover(key, b.chunk(0, generation), b.tensor(generation))
            b.apply((), (recovery,))
            b.pump()
            assert isinstance(b.report_of(recovery).error, CorruptData) is damage
        assert b.slots.counts()["held"] == 1


def test_an_ended_session_frees_what_waits_at_once_and_what_runs_when_it_has_ended(tiny_store: TinyStore) -> None:
    running, queued, waiting, done = tiny_store.keys()[:4]
    with bench(tiny_store, workers=1) as b:
        reads = [b.read(key, b.chunk(slot)) for slot, key in enumerate((done, running, queued, waiting))]
        b.apply(tuple(reads), (b.recover(done, b.chunk(0), b.tensor(0)),))
        b.finish_read(reads[0])
        b.pump()
        b.codec.gate.clear()
        b.apply(
            (), tuple(b.recover(read.key, read.chunk_slot, b.tensor(slot + 1)) for slot, read in enumerate(reads[1:]))
        )
        units = len(tiny_store.manifest.record(done).tensors[0].e_chunks) * 2
        for _ in range(units):
            b.codec.arrived.get()
        b.finish_read(reads[1])
        b.finish_read(reads[2])
        b.codec.arrived.get()
        assert b.slots.counts() == {"free": 0, "writing": 3, "held": 1, "pinned": 0}
        reported = len(b.reported)

        b.session.end(Unavailable("gone"))
        assert b.slots.counts() == {"free": 2, "writing": 2, "held": 0, "pinned": 0}
        b.pump()  # the queued one, which never ran
        assert b.slots.counts() == {"free": 3, "writing": 1, "held": 0, "pinned": 0}
        assert not b.session.idle
        b.codec.gate.set()
        b.pump()
        assert b.session.idle
        assert b.slots.counts() == FREE
        assert len(b.reported) == reported  # nobody is there to be told
        assert b.workers.open_count == 0

        b.session = b.open("session 2")
        read = b.read(done, b.chunk(0, 2))
        b.apply((read,), (b.recover(done, b.chunk(0, 2), b.tensor(1, 2)),))
        b.finish_read(read)
        b.pump()
        assert b.holds(1, done)
