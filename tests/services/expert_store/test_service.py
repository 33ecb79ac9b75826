"""The expert store's face over a real socket, in this process: malformed messages, session ends, draining."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from tests.services.expert_store.gated_reader import GatedReader
from tests.services.slots import ChunkArenas
from tests.services.tiny_store import TinyStore
from zipmoe.arena.description import ArenaDescription
from zipmoe.errors import Cancelled, InvalidRequest, StaleSlot, Unavailable, ZipMoeError
from zipmoe.internal.v1 import expert_store_pb2 as pb
from zipmoe.internal.v1 import expert_store_pb2_grpc, types_pb2
from zipmoe.process.job import JobEvent
from zipmoe.process.loop_queue import LoopQueue
from zipmoe.process.task_pool import TaskPool
from zipmoe.residency.pools import Completed, Operations, Pool, Read, SessionLost
from zipmoe.rpc.client import target_of
from zipmoe.rpc.status import error_of
from zipmoe.rpc.testing import Served, served
from zipmoe.rpc.wire import key_message, operations_message, slot_message
from zipmoe.services.expert_store.client import SERVICE_NAME, StoreSession, describe_store
from zipmoe.services.expert_store.job import ReadJob
from zipmoe.services.expert_store.measured_disk import MeasuredDisk
from zipmoe.services.expert_store.metrics import StoreMetrics
from zipmoe.services.expert_store.plan import read_planner
from zipmoe.services.expert_store.service import ExpertStoreService
from zipmoe.services.expert_store.session import ReadSessions
from zipmoe.types import Part


class Store:
    """The service with everything behind it; reads wait at the reader's gate."""

    def __init__(self, store: TinyStore) -> None:
        self.key = store.keys()[0]
        self.reader = GatedReader(store)
        self.arenas = ChunkArenas(store.manifest, 4)
        self.executor = ThreadPoolExecutor(2, "io")
        inbox: LoopQueue[JobEvent[ReadJob]] = LoopQueue(asyncio.get_running_loop(), self._take_back)
        self.io = TaskPool(MeasuredDisk(self.reader).read, self.executor, 2, inbox.post)
        self.owner = ReadSessions(self.arenas.e, self.arenas.sm, self.io, read_planner(self.reader, 4096))
        e_arena, sm_arena = (ArenaDescription.of(each, Path("/nowhere")) for each in (self.arenas.e, self.arenas.sm))
        metrics = StoreMetrics(CollectorRegistry())
        self.service = ExpertStoreService(self.owner, store.manifest.digest, e_arena, sm_arena, metrics)
        self.io.start()
        self.read_ended = asyncio.Event()
        self.served: Served

    def _take_back(self, event: JobEvent[ReadJob]) -> None:
        self.service.read_reported(event)
        self.read_ended.set()

    @property
    def target(self) -> str:
        return target_of(self.served.path)

    @property
    def free(self) -> int:
        """Free slots, the same in both arenas."""
        e_free, sm_free = (self.owner.pools[pool].slots.counts()["free"] for pool in (Pool.E, Pool.SM))
        assert e_free == sm_free
        return e_free

    def read(self, slot: int, generation: int = 1) -> Read:
        """A read into a slot of both arenas; the slot is its operation id too."""
        return self.arenas.read(slot, self.key, slot, generation)

    async def wait_for_requests(self, count: int) -> None:
        for _ in range(count):
            await asyncio.get_running_loop().run_in_executor(None, self.reader.arrived.get)


async def ended(results: asyncio.Queue[Completed | SessionLost], count: int = 1) -> dict[int, ZipMoeError | None]:
    """Waits for the ends of so many reads; returns their errors."""
    errors: dict[int, ZipMoeError | None] = {}
    while len(errors) < count:
        result = await results.get()
        assert isinstance(result, Completed)
        if not result.first_tensor_only:
            errors[result.operation_id] = result.error
    return errors


@pytest.fixture
async def store(tiny_store: TinyStore) -> AsyncIterator[Store]:
    made = Store(tiny_store)

    def add(server: object) -> None:
        expert_store_pb2_grpc.add_ExpertStoreServiceServicer_to_server(made.service, server)

    async with served(add, [SERVICE_NAME]) as running:
        made.served = running
        yield made
        made.reader.open_gate()
    made.io.stop()
    made.executor.shutdown()
    made.reader.close()
    made.arenas.close()


async def test_the_description_is_the_manifests_and_the_arenas(store: Store, tiny_store: TinyStore) -> None:
    description = await describe_store(store.served.channel, 10.0)
    assert description.store_digest == tiny_store.manifest.digest
    for described, arena in ((description.e_arena, store.arenas.e), (description.sm_arena, store.arenas.sm)):
        assert described == (arena.owner_id, arena.epoch, "/nowhere", arena.slot_bytes, 4)


async def test_malformed_reads_are_completed_with_invalid_request_and_the_others_go_on(store: Store) -> None:
    key = key_message(store.key)
    e_slot, sm_slot = slot_message(store.arenas.e_ref(0)), slot_message(store.arenas.sm_ref(0))
    reads = [
        types_pb2.Read(operation_id=1, key=key),
        types_pb2.Read(operation_id=2, e_slot=e_slot, sm_slot=sm_slot),
        types_pb2.Read(operation_id=3, key=key, e_slot=e_slot, sm_slot=sm_slot, urgency=3),
        types_pb2.Read(operation_id=4, key=key, e_slot=sm_slot, sm_slot=e_slot),
        types_pb2.Read(operation_id=5, key=key, e_slot=e_slot, sm_slot=sm_slot, urgency=1),
    ]
    call = expert_store_pb2_grpc.ExpertStoreServiceStub(store.served.channel).ReadChunks()
    opened = (await call.read()).opened
    assert (opened.first_e_generation, opened.first_sm_generation) == (1, 1)
    await call.write(pb.ReadChunksRequest(operations=types_pb2.Operations(reads=reads)))
    errors: dict[int, ZipMoeError | None] = {}
    while len(errors) < len(reads):
        [completed] = (await call.read()).completed
        if not completed.first_tensor_only:  # whether that comes depends on which thread is first
            errors[completed.operation_id] = error_of(completed.status)
    kinds = [InvalidRequest, InvalidRequest, InvalidRequest, StaleSlot, type(None)]
    assert [type(errors[number]) for number in range(1, 6)] == kinds
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_when_a_closed_session_has_ended_all_its_slots_are_free(store: Store) -> None:
    results: list[Completed | SessionLost] = []
    session = await StoreSession.open(store.target, results.append)
    store.reader.gate.clear()
    session.send(Operations(reads=[store.read(slot) for slot in range(3)]))
    await store.wait_for_requests(2)
    assert store.free == 1
    closing = asyncio.ensure_future(session.close())
    other = await StoreSession.open(store.target, results.append)  # the loop has seen the end of the first one by then
    assert not closing.done()
    store.reader.open_gate()
    await closing
    assert store.free == 4
    assert results == []
    await other.close()


async def test_a_session_that_is_cut_off_frees_its_slots_when_its_writes_have_ended(store: Store) -> None:
    call = expert_store_pb2_grpc.ExpertStoreServiceStub(store.served.channel).ReadChunks()
    await call.read()
    store.reader.gate.clear()
    operations = operations_message(Operations(reads=[store.read(slot) for slot in range(2)]))
    await call.write(pb.ReadChunksRequest(operations=operations))
    await store.wait_for_requests(2)
    call.cancel()
    while store.service.session_count:
        await describe_store(store.served.channel, 10.0)
    assert store.free == 3  # both requests at the disk are of the first read; the second one was given up
    store.reader.open_gate()
    while store.free < 4:
        store.read_ended.clear()
        await store.read_ended.wait()


async def test_a_new_session_begins_above_all_generations_that_were_seen(store: Store) -> None:
    results: asyncio.Queue[Completed | SessionLost] = asyncio.Queue()
    session = await StoreSession.open(store.target, results.put_nowait)
    session.send(Operations(reads=[store.arenas.read(1, store.key, 2, 77, parts=Part.E)]))
    assert await ended(results) == {1: None}
    await session.close()
    session = await StoreSession.open(store.target, results.put_nowait)
    assert session.first_generations == (78, 1, 0)
    await session.close()


async def test_a_read_that_has_not_begun_can_be_called_off_and_its_slots_are_free(store: Store) -> None:
    results: asyncio.Queue[Completed | SessionLost] = asyncio.Queue()
    session = await StoreSession.open(store.target, results.put_nowait)
    store.reader.close_gate()
    session.send(Operations(reads=[store.read(slot) for slot in range(3)]))
    await store.wait_for_requests(2)
    session.send(Operations(cancels=[0, 2, 5], reads=[store.read(3)]))
    assert {number: type(error) for number, error in (await ended(results)).items()} == {2: Cancelled}
    assert store.free == 1
    store.reader.open_gate()
    assert await ended(results, 3) == {0: None, 1: None, 3: None}
    await session.close()


async def test_draining_ends_sessions_with_unavailable_and_refuses_new_ones(store: Store) -> None:
    results: asyncio.Queue[Completed | SessionLost] = asyncio.Queue()
    session = await StoreSession.open(store.target, results.put_nowait)
    store.service.drain()
    lost = await results.get()
    assert isinstance(lost, SessionLost)
    assert isinstance(lost.error, Unavailable)
    await session.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await StoreSession.open(store.target, results.put_nowait)


async def test_opening_a_session_where_nobody_listens_is_unavailable(store: Store) -> None:
    with pytest.raises(Unavailable):
        await StoreSession.open(f"{store.target}.missing", lambda event: None)
