"""The expert store and the decoder as real processes over real sockets, with the test in the router's place."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.decoder.client import FetchSession
from tests.services.counting_proxy import CountingProxy
from tests.services.fetching import Router
from tests.services.processes import NOT_SERVING, ROOT, Services, free_slots, metric, running_services
from tests.services.tiny_store import TinyStore, make_store
from zipmoe.errors import (
    CorruptData,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
    SlotLeased,
    StaleSlot,
    StoreMismatch,
    Unavailable,
    ZipMoeError,
)
from zipmoe.residency.base import Read, Recover
from zipmoe.types import ExpertKey, Part

SLOTS = 8
SLOT_FLAGS = ("--chunk-slots", str(SLOTS)), ("--tensor-slots", str(SLOTS), "--workers", "2")

#: Opens a session, fetches everything, says so at the first result, and then never goes on by itself.
CLIENT = """
import sys
from tests.integration.test_store_and_decoder import stall
stall(sys.argv[1], sys.argv[2:])
"""


def stall(target: str, numbers: list[str]) -> None:
    """Runs in the client that is to be killed: `numbers` are layer, expert, layer, expert, ..."""
    from queue import SimpleQueue

    from zipmoe.types import SlotRef

    events: SimpleQueue[object] = SimpleQueue()
    session = FetchSession.open(target, events.put)
    chunks, tensors = session.description.chunk_arena, session.description.tensor_arena
    reads, recoveries = [], []
    for slot, (layer, expert) in enumerate(zip(numbers[::2], numbers[1::2], strict=True)):
        key = ExpertKey(int(layer), int(expert))
        chunk = SlotRef(chunks.owner_id, chunks.arena_epoch, slot, session.first_chunk_generation)
        tensor = SlotRef(tensors.owner_id, tensors.arena_epoch, slot, session.first_tensor_generation)
        reads.append(Read(2 * slot, key, Part.ALL, chunk))
        recoveries.append(Recover(2 * slot + 1, key, chunk, tensor))
    session.send((), (), reads, recoveries)
    events.get()
    print("fetching", flush=True)
    sys.stdin.read()


@pytest.fixture(scope="module")
def large_store(tmp_path_factory: pytest.TempPathFactory) -> TinyStore:
    """Experts of 768 KiB: large enough that several are under way when the first one is done."""
    return make_store(tmp_path_factory.mktemp("large"), layers=1, experts=SLOTS, shapes=((512, 512), (512, 256)))


@pytest.fixture(scope="module")
def pair(large_store: TinyStore) -> Iterator[Services]:
    """A store and a decoder that tests share; they leave no session open."""
    with running_services() as services:
        services.store(large_store.path, *SLOT_FLAGS[0])
        services.decoder(large_store.path, *SLOT_FLAGS[1])
        services.wait_for_decoder()
        yield services


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
        outer.decoder(large_store.path, *SLOT_FLAGS[1])
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
        chunk, tensor = router.chunk, router.tensor
        refused: list[tuple[Read | Recover, type[ZipMoeError]]] = [
            (Read(101, key, Part.ALL, chunk(0, fresh)), SlotLeased),
            (Read(102, key, Part.ALL, chunk(0, first)), StaleSlot),
            (Read(103, key, Part.ALL, chunk(1, 0)), StaleSlot),
            (Read(104, key, Part.ALL, chunk(1, fresh)._replace(arena_epoch=1)), StaleSlot),
            (Read(105, key, Part.ALL, chunk(SLOTS, fresh)), NotFound),
            (Read(106, ExpertKey(0, SLOTS), Part.ALL, chunk(1, fresh)), NotFound),
            (Read(107, key, Part(0), chunk(1, fresh)), InvalidRequest),
            (Read(108, key, Part(4), chunk(1, fresh)), InvalidRequest),
            (Recover(109, key, chunk(0, first), tensor(0, fresh)), SlotLeased),
            (Recover(110, key, chunk(0, first), tensor(1, 0)), StaleSlot),
            (Recover(111, key, chunk(2, fresh), tensor(1, fresh)), StaleSlot),
            (Recover(112, key, chunk(0, first), tensor(SLOTS, fresh)), NotFound),
            (Recover(113, large_store.keys()[1], chunk(0, first), tensor(1, fresh)), InvalidRequest),
        ]
        for operation, _ in refused:
            is_read = isinstance(operation, Read)
            router.session.send((), (), [operation] if is_read else [], [] if is_read else [operation])  # type: ignore[list-item]
        errors = router.results(operation.operation_id for operation, _ in refused)
        assert [type(errors[operation.operation_id]) for operation, _ in refused] == [kind for _, kind in refused]
        assert router.holds(0, key)
        assert set(router.results(router.fetch([key])).values()) == {None}


def test_a_second_router_is_refused_until_the_first_has_gone(pair: Services, large_store: TinyStore) -> None:
    with Router(pair.decoder_target, large_store) as first:
        with pytest.raises(ResourceExhausted, match="another router"):
            FetchSession.open(pair.decoder_target, lambda event: None)
        first.fetch(large_store.keys())
        first.next_result()
        first_generation = first.generation
    with Router(pair.decoder_target, large_store) as second:  # the first one's writes were still running
        assert second.generation >= first_generation
        assert set(second.results(second.fetch(large_store.keys())).values()) == {None}


def test_a_killed_client_leaves_no_slot_behind(pair: Services, large_store: TinyStore) -> None:
    numbers = [str(number) for key in large_store.keys() for number in key]  # noqa: SIM118
    command = [sys.executable, "-c", CLIENT, pair.decoder_target, *numbers]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"fetching\n"
        client.kill()
    with Router(pair.decoder_target, large_store) as router:  # opens when the writes of the dead one have ended
        store, decoder = pair.started("expert_store"), pair.started("decoder")
        assert free_slots(store, "chunk") == SLOTS
        assert free_slots(decoder, "tensor") == SLOTS
        assert metric(store, "zipmoe_sessions") == metric(decoder, "zipmoe_sessions") == 1
        assert set(router.results(router.fetch(large_store.keys())).values()) == {None}
        assert all(router.holds(slot, key) for slot, key in enumerate(large_store.keys()))


def test_no_sequence_of_session_ends_leaks_a_slot(pair: Services, large_store: TinyStore) -> None:
    choose = random.Random(1)
    keys = large_store.keys()

    def open_router() -> Router:
        while True:
            try:
                return Router(pair.decoder_target, large_store)
            except ResourceExhausted:  # the decoder has not yet heard of the last one's end
                continue

    for _ in range(20):
        router = open_router()
        for _ in range(choose.randrange(3)):
            router.fetch(choose.sample(keys, choose.randrange(1, SLOTS + 1)))
            for _ in range(choose.randrange(3)):
                router.next_event()
        if choose.random() < 0.5:
            router.session._stream._call.cancel()  # what the decoder sees when its client has been killed
            router.lost()
        router.close()
    with open_router() as router:
        assert free_slots(pair.started("expert_store"), "chunk") == SLOTS
        assert free_slots(pair.started("decoder"), "tensor") == SLOTS
        assert set(router.results(router.fetch(keys)).values()) == {None}
        assert all(router.holds(slot, key) for slot, key in enumerate(keys))


def test_damage_fails_only_the_damaged_expert(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    keys = store.keys()
    e_damaged, sm_damaged = keys[1], keys[4]
    store.damage(e_damaged, at=10)
    store.damage(sm_damaged, at=store.manifest.record(sm_damaged).e_bytes + 10)
    with running_services() as services:
        store_service = services.store(store.path)
        decoder = services.decoder(store.path)
        services.wait_for_decoder()
        with Router(services.decoder_target, store) as router:
            operations = router.fetch(keys)
            errors = router.results(operations)
            failed = {operation for operation, error in errors.items() if error is not None}
            assert failed == {op for op, key in operations.items() if key in (e_damaged, sm_damaged)}
            assert {type(errors[operation]) for operation in failed} == {CorruptData}
            assert all(router.holds(slot, key) for slot, key in enumerate(keys) if key not in (e_damaged, sm_damaged))
            assert free_slots(store_service, "chunk") == 2
            assert free_slots(decoder, "tensor") == 2
        assert metric(store_service, "zipmoe_store_checksum_failures_total") == 2
        assert metric(decoder, 'zipmoe_decoder_recoveries_total{outcome="ok"}') == len(keys) - 2


def test_store_and_decoder_survive_each_others_death(large_store: TinyStore) -> None:
    keys = large_store.keys()
    with running_services() as services:
        store = services.store(large_store.path, *SLOT_FLAGS[0])
        decoder = services.decoder(large_store.path, *SLOT_FLAGS[1])
        services.wait_for_decoder()
        with Router(services.decoder_target, large_store) as router:
            router.fetch(keys)
            router.next_result()
            store.kill()
            assert isinstance(router.lost(), Unavailable)
            assert free_slots(decoder, "tensor") == SLOTS
            old_epoch = router.chunks.arena_epoch
        services.wait_until_decoder_is(NOT_SERVING)
        assert metric(decoder, "zipmoe_decoder_store_connected") == 0
        with pytest.raises(Unavailable):
            FetchSession.open(services.decoder_target, lambda event: None)

        services.store(large_store.path, *SLOT_FLAGS[0])
        services.wait_for_decoder()
        with Router(services.decoder_target, large_store) as router:
            assert router.chunks.arena_epoch != old_epoch
            assert set(router.results(router.fetch(keys)).values()) == {None}
            assert all(router.holds(slot, key) for slot, key in enumerate(keys))

            router.fetch(keys)
            router.next_result()
            decoder.kill()
            assert isinstance(router.lost(), Unavailable)

        decoder = services.decoder(large_store.path, *SLOT_FLAGS[1])
        services.wait_for_decoder()
        with Router(services.decoder_target, large_store) as router:
            assert set(router.results(router.fetch(keys)).values()) == {None}
            assert all(router.holds(slot, key) for slot, key in enumerate(keys))
            decoder.send(signal.SIGTERM)
            assert isinstance(router.lost(), Unavailable)
            assert decoder.wait() == 0
        assert not services.sockets.decoder.exists()
        assert not services.sockets.decoder_arena.exists()


def test_a_decoder_of_another_store_does_not_serve(tmp_path: Path, large_store: TinyStore) -> None:
    with running_services() as services:
        services.store(large_store.path)
        services.wait_for_store()
        services.decoder(make_store(tmp_path).path)
        services.wait_until_decoder_is(NOT_SERVING)
        error: ZipMoeError = Unavailable("not asked yet")
        while isinstance(error, Unavailable):  # until the decoder has talked to the store
            with pytest.raises(ZipMoeError) as raised:
                FetchSession.open(services.decoder_target, lambda event: None)
            error = raised.value
        assert isinstance(error, StoreMismatch)
        services.wait_until_decoder_is(NOT_SERVING)
