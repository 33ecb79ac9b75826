"""The expert store and the decoder as real processes over real sockets, with the test in the router's place."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue

from tests.integration.stacks.pair import FLAGS, SLOTS
from tests.services.counting_proxy import CountingProxy
from tests.services.fetching import Router
from tests.services.processes import Services, free_slots, metric, running_services
from tests.services.tiny_store import TinyStore, make_store
from zipmoe.errors import (
    Cancelled,
    CorruptData,
    InvalidRequest,
    NotFound,
    SlotLeased,
    StaleSlot,
    ZipMoeError,
)
from zipmoe.residency.pools import Completed, Operations, Pool, Read, Recover, Release, Urgency
from zipmoe.services.decoder.client import FetchSession
from zipmoe.types import ExpertKey, Part, SlotRef


def test_recovered_bytes_are_the_checkpoints(pair: Services, large_store: TinyStore) -> None:
    keys = large_store.keys()
    with Router(pair.decoder_target, large_store) as router:
        for batch in (keys, keys[::-1], keys[2:5]):
            operations = router.fetch(batch)
            assert set(router.results(operations).values()) == {None}
            assert all(router.holds(slot, key) for slot, key in enumerate(batch))


def test_bulk_bytes_never_cross_a_socket(pair: Services, large_store: TinyStore) -> None:
    with running_services() as outer:
        to_store = CountingProxy(outer.sockets.expert_store, pair.sockets.expert_store)
        outer.decoder(large_store.path, *FLAGS)
        outer.wait_for_decoder()
        front = outer.runtime_dir / "front.sock"
        to_decoder = CountingProxy(front, outer.sockets.decoder)
        rounds = 4
        with Router(f"unix:{front}", large_store) as router:
            for _ in range(rounds):
                assert set(router.results(router.fetch(large_store.keys())).values()) == {None}
        outer.end()
        to_decoder.close()
        to_store.close()
        recovered_bytes = rounds * sum(map(len, large_store.experts.values()))
        assert 0 < to_store.byte_count < recovered_bytes / 500
        assert 0 < to_decoder.byte_count < recovered_bytes / 500


def test_refusals_come_as_failed_completions_and_the_session_goes_on(pair: Services, large_store: TinyStore) -> None:
    key = large_store.keys()[0]
    with Router(pair.decoder_target, large_store) as router:
        first = router.generation
        assert set(router.results(router.fetch([key])).values()) == {None}
        fresh = router.generation
        read, recover, tensor = router.read, router.recover, router.tensor
        e_slot, sm_slot, fresh_read = router.e_slot(1, fresh), router.sm_slot(1, fresh), router.read(0, key, 1, fresh)
        refused: list[tuple[Read | Recover, type[ZipMoeError]]] = [
            (read(101, key, 0, fresh), SlotLeased),
            (read(102, key, 0, first), StaleSlot),
            (read(103, key, 1, 0), StaleSlot),
            (fresh_read._replace(operation_id=104, e_slot=e_slot._replace(arena_epoch=1)), StaleSlot),
            (fresh_read._replace(operation_id=105, sm_slot=sm_slot._replace(arena_epoch=1)), StaleSlot),
            (fresh_read._replace(operation_id=106, e_slot=sm_slot, sm_slot=e_slot), StaleSlot),
            (read(107, key, SLOTS, fresh), NotFound),
            (read(108, ExpertKey(0, SLOTS), 1, fresh), NotFound),
            (fresh_read._replace(operation_id=109, e_slot=None, sm_slot=None), InvalidRequest),
            (recover(110, key, 0, first, tensor(0, fresh)), SlotLeased),
            (recover(111, key, 0, first, tensor(1, 0)), StaleSlot),
            (recover(112, key, 2, fresh, tensor(1, fresh)), StaleSlot),
            (recover(113, key, 0, first, tensor(SLOTS, fresh)), NotFound),
            (recover(114, large_store.keys()[1], 0, first, tensor(1, fresh)), InvalidRequest),
        ]
        errors = []
        for operation, _ in refused:  # one after the other: a read that the store is still to refuse occupies its slots
            if isinstance(operation, Read):
                router.session.send(Operations(reads=[operation]))
            else:
                router.session.send(Operations(recoveries=[operation]))
            errors.append(router.results([operation.operation_id])[operation.operation_id])
        assert [type(error) for error in errors] == [kind for _, kind in refused]
        assert router.holds(0, key)
        assert set(router.results(router.fetch([key])).values()) == {None}


def test_damage_fails_only_the_damaged_expert(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    keys = store.keys()
    e_damaged, sm_damaged = keys[1], keys[4]
    store.damage(e_damaged, at=10)
    store.damage(sm_damaged, at=store.manifest.record(sm_damaged).e_bytes + 10)
    with running_services() as services:
        store_service = services.store(store.path, *FLAGS)
        decoder = services.decoder(store.path, *FLAGS)
        services.wait_for_decoder()
        with Router(services.decoder_target, store) as router:
            operations = router.fetch(keys)
            errors = router.results(operations)
            failed = {operation for operation, error in errors.items() if error is not None}
            assert failed == {op for op, key in operations.items() if key in (e_damaged, sm_damaged)}
            assert {type(errors[operation]) for operation in failed} == {CorruptData}
            assert all(router.holds(slot, key) for slot, key in enumerate(keys) if key not in (e_damaged, sm_damaged))
            assert free_slots(store_service, "e") == free_slots(store_service, "sm") == 2
            assert free_slots(decoder, "tensor") == 2
        assert metric(store_service, "zipmoe_store_checksum_failures_total") == 2
        assert metric(decoder, 'zipmoe_decoder_recoveries_total{outcome="ok"}') == len(keys) - 2


def test_the_parts_of_an_expert_may_come_one_after_the_other_into_slots_of_different_numbers(
    pair: Services, large_store: TinyStore
) -> None:
    key, other = large_store.keys()[:2]
    with Router(pair.decoder_target, large_store) as router:
        generation = router.generation
        e_slot, sm_slot = router.e_slot(3, generation), router.sm_slot(5, generation)
        router.session.send(Operations(reads=[Read(1, key, Part.E, e_slot, None, Urgency.PREFETCH)]))
        assert router.results([1]) == {1: None}
        batch = Operations(reads=[Read(2, key, Part.SM, None, sm_slot, Urgency.NEEDED)])
        batch.recoveries.append(Recover(3, key, e_slot, sm_slot, router.tensor(0, generation), Urgency.NEEDED))
        router.session.send(batch)
        assert router.results([2, 3]) == {2: None, 3: None}
        assert router.holds(0, key)
        releases = [Release(Pool.SM, sm_slot)]  # what is left is resident as E alone, and can be completed again
        again = Read(4, other, Part.SM, None, router.sm_slot(5, generation + 1), Urgency.NEEDED)
        router.session.send(Operations(releases=releases, reads=[again]))
        assert router.results([4]) == {4: None}


def test_reads_can_be_called_off_and_each_ends_exactly_once(pair: Services, large_store: TinyStore) -> None:
    keys = large_store.keys()
    with Router(pair.decoder_target, large_store) as router:
        reads = [router.read(slot, key, slot, router.generation) for slot, key in enumerate(keys)]
        router.session.send(Operations(reads=[read._replace(urgency=Urgency.PREFETCH) for read in reads]))
        router.session.send(Operations(cancels=[*range(SLOTS), 99]))
        errors = router.results(range(SLOTS))
        assert set(map(type, errors.values())) <= {type(None), Cancelled}
        router.generation += 1
        kept = [slot for slot, error in errors.items() if error is None]
        router.held = [Release(Pool.E, router.e_slot(slot, router.generation - 1)) for slot in kept]
        router.held += [Release(Pool.SM, router.sm_slot(slot, router.generation - 1)) for slot in kept]
        router.operation_id = SLOTS
        assert set(router.results(router.fetch(keys)).values()) == {None}  # the slots of the others were free
        assert all(router.holds(slot, key) for slot, key in enumerate(keys))


def test_the_first_tensor_is_reported_at_most_once_and_before_the_whole(pair: Services, large_store: TinyStore) -> None:
    with Router(pair.decoder_target, large_store) as router:
        operations = router.fetch(large_store.keys()[:2])
        seen: dict[int, list[bool]] = {operation: [] for operation in operations}
        while not all(reports and not reports[-1] for reports in seen.values()):
            result = router.next_result()
            assert result.error is None
            seen[result.operation_id].append(result.first_tensor_only)
        # Odd ones are reads, which recoveries wait for: what those have of them is reported as theirs.
        assert [seen[operation] for operation in operations if operation % 2] == [[False]] * 2
        assert all(seen[operation] in ([True, False], [False]) for operation in operations if operation % 2 == 0)


def test_without_tensor_slots_there_is_no_tensor_arena(large_store: TinyStore) -> None:
    flags = ("--cache-slots", f"{SLOTS}:{SLOTS}:0", "--workers", "1")
    with running_services() as services:
        services.store(large_store.path, *flags)
        services.decoder(large_store.path, *flags)
        services.wait_for_decoder()
        events: SimpleQueue[object] = SimpleQueue()
        session = FetchSession.open(services.decoder_target, events.put)
        described, first = session.description, session.first_generations
        assert (described.tensor_arena, first.tensor) == (None, 0)
        assert not services.sockets.tensor_arena.exists()
        key = large_store.keys()[0]
        e_slot = SlotRef(described.e_arena.owner_id, described.e_arena.arena_epoch, 0, first.e)
        sm_slot = SlotRef(described.sm_arena.owner_id, described.sm_arena.arena_epoch, 0, first.sm)
        nowhere = SlotRef("decoder", 1, 0, 1)
        batch = Operations(reads=[Read(1, key, Part.ALL, e_slot, sm_slot, Urgency.NEEDED)])
        batch.recoveries.append(Recover(2, key, e_slot, sm_slot, nowhere, Urgency.NEEDED))
        session.send(batch)
        ends: dict[int, ZipMoeError | None] = {}
        while len(ends) < 2:
            result = events.get(timeout=30.0)
            assert isinstance(result, Completed)
            if not result.first_tensor_only:
                ends[result.operation_id] = result.error
        assert ends[1] is None
        assert isinstance(ends[2], InvalidRequest)
        session.close()
