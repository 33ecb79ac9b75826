"""How sessions with the real expert store and decoder end, in peace or by a kill, and that nothing is left behind."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.integration.stacks.pair import FLAGS, SLOTS
from tests.services.fetching import Router
from tests.services.processes import NOT_SERVING, ROOT, Services, free_slots, metric, running_services
from tests.services.tiny_store import TinyStore, make_store
from zipmoe.errors import (
    ResourceExhausted,
    StoreMismatch,
    Unavailable,
    ZipMoeError,
)
from zipmoe.residency.pools import Operations, Read, Recover, Urgency
from zipmoe.services.decoder.client import FetchSession
from zipmoe.types import ExpertKey, Part, SlotRef

#: Opens a session, fetches everything, says so at the first result, and then never goes on by itself.
CLIENT = """
import sys
from tests.integration.pairs.test_store_and_decoder_ends import stall
stall(sys.argv[1], sys.argv[2:])
"""


def stall(target: str, numbers: list[str]) -> None:
    """Runs in the client that is to be killed: `numbers` are layer, expert, layer, expert, ..."""
    keys = [ExpertKey(*pair) for pair in zip(map(int, numbers[::2]), map(int, numbers[1::2]), strict=True)]
    events: SimpleQueue[object] = SimpleQueue()
    session = FetchSession.open(target, events.put)
    described, first = session.description, session.first_generations
    batch = Operations()
    for slot, key in enumerate(keys):
        e_slot = SlotRef(described.e_arena.owner_id, described.e_arena.arena_epoch, slot, first.e)
        sm_slot = SlotRef(described.sm_arena.owner_id, described.sm_arena.arena_epoch, slot, first.sm)
        assert described.tensor_arena is not None
        tensor = SlotRef(described.tensor_arena.owner_id, described.tensor_arena.arena_epoch, slot, first.tensor)
        batch.reads.append(Read(2 * slot, key, Part.ALL, e_slot, sm_slot, Urgency.NEEDED))
        batch.recoveries.append(Recover(2 * slot + 1, key, e_slot, sm_slot, tensor, Urgency.NEEDED))
    session.send(batch)
    events.get()
    print("fetching", flush=True)
    sys.stdin.read()


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
        assert free_slots(store, "e") == free_slots(store, "sm") == SLOTS
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
        assert free_slots(pair.started("expert_store"), "e") == SLOTS
        assert free_slots(pair.started("expert_store"), "sm") == SLOTS
        assert free_slots(pair.started("decoder"), "tensor") == SLOTS
        assert set(router.results(router.fetch(keys)).values()) == {None}
        assert all(router.holds(slot, key) for slot, key in enumerate(keys))


def test_store_and_decoder_survive_each_others_death(large_store: TinyStore) -> None:
    keys = large_store.keys()
    with running_services() as services:
        store = services.store(large_store.path, *FLAGS)
        decoder = services.decoder(large_store.path, *FLAGS)
        services.wait_for_decoder()
        with Router(services.decoder_target, large_store) as router:
            router.fetch(keys)
            router.next_result()
            store.kill()
            assert isinstance(router.lost(), Unavailable)
            assert free_slots(decoder, "tensor") == SLOTS
            old_epochs = {router.e_chunks.arena_epoch, router.sm_chunks.arena_epoch}
        services.wait_until_decoder_is(NOT_SERVING)
        assert metric(decoder, "zipmoe_decoder_store_connected") == 0
        with pytest.raises(Unavailable):
            FetchSession.open(services.decoder_target, lambda event: None)

        services.store(large_store.path, *FLAGS)
        services.wait_for_decoder()
        with Router(services.decoder_target, large_store) as router:
            assert old_epochs.isdisjoint({router.e_chunks.arena_epoch, router.sm_chunks.arena_epoch})
            assert set(router.results(router.fetch(keys)).values()) == {None}
            assert all(router.holds(slot, key) for slot, key in enumerate(keys))

            router.fetch(keys)
            router.next_result()
            decoder.kill()
            assert isinstance(router.lost(), Unavailable)

        decoder = services.decoder(large_store.path, *FLAGS)
        services.wait_for_decoder()
        with Router(services.decoder_target, large_store) as router:
            assert set(router.results(router.fetch(keys)).values()) == {None}
            assert all(router.holds(slot, key) for slot, key in enumerate(keys))
            decoder.send(signal.SIGTERM)
            assert isinstance(router.lost(), Unavailable)
            assert decoder.wait() == 0
        assert not services.sockets.decoder.exists()
        assert not services.sockets.tensor_arena.exists()


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
