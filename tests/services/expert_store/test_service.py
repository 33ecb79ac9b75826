"""The expert store's face over a real socket, in this process: malformed messages, session ends, draining."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from services.expert_store.channel import ReadChannel
from services.expert_store.client import SERVICE_NAME, ReadResult, SessionLost, StoreSession, describe_store
from services.expert_store.inbox import LoopInbox
from services.expert_store.job import ReadJob
from services.expert_store.metrics import StoreMetrics
from services.expert_store.owner import ChunkOwner
from services.expert_store.plan import read_planner
from services.expert_store.service import ExpertStoreService
from services.expert_store.wire import ArenaDescription, key_message, slot_message
from tests.services.expert_store.gated_reader import GatedReader
from tests.services.tiny_store import TinyStore
from zipmoe.arena.arena import Arena
from zipmoe.errors import InvalidRequest, Unavailable
from zipmoe.internal.v1 import expert_store_pb2 as pb
from zipmoe.internal.v1 import expert_store_pb2_grpc
from zipmoe.residency.base import Read
from zipmoe.rpc.client import target_of
from zipmoe.rpc.status import error_of
from zipmoe.rpc.testing import Served, served
from zipmoe.types import Part, SlotRef


class Store:
    """The service with everything behind it; reads wait at the reader's gate."""

    def __init__(self, store: TinyStore) -> None:
        self.key = store.keys()[0]
        self.reader = GatedReader(store)
        self.arena = Arena.create("store", store.manifest.max_record_bytes, 4, lock=False)
        self.executor = ThreadPoolExecutor(2, "io")
        inbox: LoopInbox[ReadJob] = LoopInbox(asyncio.get_running_loop(), self._take_back)
        self.channel = ReadChannel(self.reader, self.executor, 2, inbox.post)
        self.owner = ChunkOwner(self.arena, self.channel, read_planner(self.reader, 4096))
        description = ArenaDescription("store", self.arena.epoch, "/nowhere", self.arena.slot_bytes, 4)
        metrics = StoreMetrics(CollectorRegistry())
        self.service = ExpertStoreService(self.owner, store.manifest.digest, description, metrics)
        self.channel.start()
        self.read_ended = asyncio.Event()
        self.served: Served

    def _take_back(self, job: ReadJob) -> None:
        self.service.read_ended(job)
        self.read_ended.set()

    @property
    def target(self) -> str:
        return target_of(self.served.path)

    @property
    def free(self) -> int:
        return self.owner.slots.counts()["free"]

    def ref(self, slot: int, generation: int = 1) -> SlotRef:
        return SlotRef("store", self.arena.epoch, slot, generation)

    async def wait_for_requests(self, count: int) -> None:
        for _ in range(count):
            await asyncio.get_running_loop().run_in_executor(None, self.reader.arrived.get)


@pytest.fixture
async def store(tiny_store: TinyStore) -> AsyncIterator[Store]:
    made = Store(tiny_store)

    def add(server: object) -> None:
        expert_store_pb2_grpc.add_ExpertStoreServiceServicer_to_server(made.service, server)

    async with served(add, [SERVICE_NAME]) as running:
        made.served = running
        yield made
        made.reader.gate.set()
    made.channel.stop()
    made.executor.shutdown()
    made.reader.close()
    made.arena.close()


async def test_the_description_is_the_manifests_and_the_arenas(store: Store, tiny_store: TinyStore) -> None:
    description = await describe_store(store.served.channel, 10.0)
    assert description.store_digest == tiny_store.manifest.digest
    assert description.chunk_arena.arena_epoch == store.arena.epoch
    assert description.chunk_arena.slot_count == 4


async def test_malformed_reads_are_completed_with_invalid_request_and_the_others_go_on(store: Store) -> None:
    key, slot = key_message(store.key), slot_message(store.ref(0))
    reads = [
        pb.ReadOperation(operation_id=1, key=key, parts=3),
        pb.ReadOperation(operation_id=2, slot=slot, parts=3),
        pb.ReadOperation(operation_id=3, key=key, slot=slot, parts=0),
        pb.ReadOperation(operation_id=4, key=key, slot=slot, parts=4),
        pb.ReadOperation(operation_id=5, key=key, slot=slot, parts=3),
    ]
    call = expert_store_pb2_grpc.ExpertStoreServiceStub(store.served.channel).ReadChunks()
    assert (await call.read()).opened.first_generation == 1
    await call.write(pb.ReadChunksRequest(reads=reads))
    completed = [(await call.read()).completed for _ in reads]
    errors = {each.operation_id: error_of(each.status) for each in completed}
    assert [type(errors[number]) for number in range(1, 6)] == [InvalidRequest] * 4 + [type(None)]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_when_a_closed_session_has_ended_all_its_slots_are_free(store: Store) -> None:
    results: list[ReadResult | SessionLost] = []
    session = await StoreSession.open(store.target, results.append)
    store.reader.gate.clear()
    session.send([], [Read(slot, store.key, Part.ALL, store.ref(slot)) for slot in range(3)])
    await store.wait_for_requests(2)
    assert store.free == 1
    closing = asyncio.ensure_future(session.close())
    other = await StoreSession.open(store.target, results.append)  # the loop has seen the end of the first one by then
    assert not closing.done()
    store.reader.gate.set()
    await closing
    assert store.free == 4
    assert results == []
    await other.close()


async def test_a_session_that_is_cut_off_frees_its_slots_when_its_writes_have_ended(store: Store) -> None:
    call = expert_store_pb2_grpc.ExpertStoreServiceStub(store.served.channel).ReadChunks()
    await call.read()
    store.reader.gate.clear()
    reads = [
        pb.ReadOperation(operation_id=n, key=key_message(store.key), parts=3, slot=slot_message(store.ref(n)))
        for n in range(2)
    ]
    await call.write(pb.ReadChunksRequest(reads=reads))
    await store.wait_for_requests(2)
    call.cancel()
    while store.service.session_count:
        await describe_store(store.served.channel, 10.0)
    assert store.free == 3  # both requests at the disk are of the first read; the second one was given up
    store.reader.gate.set()
    while store.free < 4:
        store.read_ended.clear()
        await store.read_ended.wait()


async def test_a_new_session_begins_above_all_generations_that_were_seen(store: Store) -> None:
    results: asyncio.Queue[ReadResult | SessionLost] = asyncio.Queue()
    session = await StoreSession.open(store.target, results.put_nowait)
    session.send([], [Read(1, store.key, Part.ALL, store.ref(2, 77))])
    result = await results.get()
    assert isinstance(result, ReadResult)
    assert result.error is None
    await session.close()
    session = await StoreSession.open(store.target, results.put_nowait)
    assert session.first_generation == 78
    await session.close()


async def test_draining_ends_sessions_with_unavailable_and_refuses_new_ones(store: Store) -> None:
    results: asyncio.Queue[ReadResult | SessionLost] = asyncio.Queue()
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
