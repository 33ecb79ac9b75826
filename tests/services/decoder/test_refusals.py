"""A fetch session: what is refused, and that a refusal changes nothing."""

from __future__ import annotations

from tests.services.decoder.decoder_bench import bench
from tests.services.tiny_store import TinyStore
from zipmoe.errors import InvalidRequest, NotFound, SlotLeased, StaleSlot, Unavailable
from zipmoe.residency.pools import Operations
from zipmoe.types import ExpertKey, Part

FREE = {"free": 4, "writing": 0, "held": 0}


def test_chunks_of_different_experts_make_no_expert(tiny_store: TinyStore) -> None:
    key, other = tiny_store.keys()[:2]
    with bench(tiny_store) as b:
        reads = b.read(key, 0, parts=Part.E), b.read(other, 0, parts=Part.SM)
        b.apply(reads)
        for read in reads:
            b.finish_read(read)
        refused = b.recover(key, 0, b.tensor(0)), b.recover(other, 0, b.tensor(0))
        b.apply((), refused)
        assert [type(b.report_of(each).error) for each in refused] == [InvalidRequest] * 2


def test_a_recovery_from_stale_content_is_refused(tiny_store: TinyStore) -> None:
    key, other = tiny_store.keys()[:2]
    with bench(tiny_store) as b:
        first, second = b.read(key, 0), b.read(other, 0, 2)
        b.apply((first,))
        b.finish_read(first)
        b.apply((second,), releases=b.chunks.releases(0))
        b.finish_read(second)
        refused = [
            (b.recover(key, 0, b.tensor(0)), StaleSlot),  # that use of the slots is over
            (b.recover(key, 0, b.tensor(0), 3), StaleSlot),  # that one has not begun
            (b.recover(key, 1, b.tensor(0)), StaleSlot),  # never read into
            (b.recover(other, 0, b.tensor(0), 2, e_slot=b.chunks.e_ref(0)), StaleSlot),  # one of the two is over
            (b.recover(other, 0, b.tensor(0), 2, e_slot=b.chunks.sm_ref(0, 2)), StaleSlot),  # of the other arena
            (b.recover(key, 0, b.tensor(0), 2), InvalidRequest),  # another expert is in them
            (b.recover(ExpertKey(9, 9), 0, b.tensor(0), 2), NotFound),
        ]
        b.apply((), tuple(fetch for fetch, _ in refused))
        assert [type(b.report_of(fetch).error) for fetch, _ in refused] == [kind for _, kind in refused]
        assert b.slots.counts() == FREE


def test_recovering_over_a_leased_tensor_slot_is_refused(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        read = b.read(key, 0)
        b.apply((read,), (b.recover(key, 0, b.tensor(0)),))
        while_written = b.recover(key, 0, b.tensor(0, 2))
        b.apply((), (while_written,))
        b.finish_read(read)
        b.pump()
        while_held = b.recover(key, 0, b.tensor(0, 3))
        stale = b.recover(key, 0, b.tensor(0))
        b.apply((), (while_held, stale))
        assert isinstance(b.report_of(while_written).error, SlotLeased)
        assert isinstance(b.report_of(while_held).error, SlotLeased)
        assert isinstance(b.report_of(stale).error, StaleSlot)
        assert b.holds(0, key)


def test_without_a_tensor_arena_recoveries_are_refused_and_reads_work(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store, has_tensors=False) as b:
        read, recovery = b.read(key, 0), b.recover(key, 0, b.tensor(0))
        b.apply((read,), (recovery,), tensor_releases=(b.tensor(0),))
        b.finish_read(read)
        assert b.report_of(read).error is None
        error = b.report_of(recovery).error
        assert isinstance(error, InvalidRequest)
        assert "no tensor slots" in error.message
        b.session.end(Unavailable("gone"))
        assert b.session.idle


def test_reads_that_cannot_be_meant_for_these_arenas_never_reach_the_store(tiny_store: TinyStore) -> None:
    key = tiny_store.keys()[0]
    with bench(tiny_store) as b:
        sound, other, e_ref, sm_ref = b.read(key, 0), b.read(key, 1), b.chunks.e_ref(1), b.chunks.sm_ref(1)
        refused = [
            (b.read(key, 1)._replace(e_slot=e_ref._replace(arena_epoch=1)), StaleSlot),
            (b.read(key, 1)._replace(sm_slot=sm_ref._replace(arena_epoch=1)), StaleSlot),
            (b.read(key, 1)._replace(e_slot=sm_ref, sm_slot=e_ref), StaleSlot),
            (b.read(key, 1)._replace(sm_slot=b.tensor(1)), StaleSlot),
            (b.read(key, 4), NotFound),
            (b.read(key, 0), StaleSlot),
            (b.read(key, 0, 2), SlotLeased),
            (b.read(key, 1)._replace(sm_slot=b.chunks.sm_ref(0)), StaleSlot),
        ]
        b.apply((sound, *(read for read, _ in refused), other))  # what is refused one slot takes neither
        assert b.sent == [Operations(reads=[sound, other])]
        assert [type(b.report_of(read).error) for read, _ in refused] == [kind for _, kind in refused]
