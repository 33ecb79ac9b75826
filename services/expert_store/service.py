"""gRPC service of the expert store: converts protocol messages for `ReadSessions`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any, TypeAlias

import grpc

from zipmoe.arena.description import ArenaDescription
from zipmoe.errors import Unavailable
from zipmoe.internal.v1 import expert_store_pb2 as pb
from zipmoe.internal.v1 import expert_store_pb2_grpc
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.process.job import JobEvent
from zipmoe.residency.pools import Completed, Pool
from zipmoe.rpc.wire import arena_message, completed_message, opened_message, operations_of
from zipmoe.services.expert_store.job import ReadJob
from zipmoe.services.expert_store.metrics import StoreMetrics
from zipmoe.services.expert_store.session import ReadSessions

Outbox: TypeAlias = "asyncio.Queue[Completed | None]"
"""Results for a client in order; None after the last result."""


class ExpertStoreService(expert_store_pb2_grpc.ExpertStoreServiceServicer):
    """Serves reads of one store.

    Thread: the event loop's only.
    """

    def __init__(
        self,
        owner: ReadSessions,
        store_digest: str,
        e_arena: ArenaDescription,
        sm_arena: ArenaDescription,
        metrics: StoreMetrics,
    ) -> None:
        self._owner = owner
        self._description = pb.DescribeStoreResponse(
            store_digest=store_digest, e_arena=arena_message(e_arena), sm_arena=arena_message(sm_arena)
        )
        self._metrics = metrics
        self._outboxes: dict[str, Outbox] = {}
        self._numbers = count(1)
        self._draining = False

    @property
    def session_count(self) -> int:
        """Number of open sessions."""
        return len(self._outboxes)

    def read_reported(self, event: JobEvent[ReadJob]) -> None:
        """Receives a report of the I/O threads: passes on the result and takes back an ended read."""
        job = event.job
        if event.ended:
            result = self._owner.ended(job)
            self._metrics.read_ended(job, result)
        else:
            result = Completed(job.read.operation_id, None, first_tensor_only=True)
        outbox = self._outboxes.get(job.holder)
        if outbox is not None:
            outbox.put_nowait(result)

    def drain(self) -> None:
        """Ends all sessions, each after its reads at the disk, and opens no more."""
        self._draining = True
        for outbox in self._outboxes.values():
            outbox.put_nowait(None)

    async def DescribeStore(  # noqa: N802 (the protocol's name)
        self, request: pb.DescribeStoreRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DescribeStoreResponse:
        """See the protocol."""
        return self._description

    async def ReadChunks(  # noqa: N802 (the protocol's name)
        self,
        request_iterator: AsyncIterator[pb.ReadChunksRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """See the protocol."""
        if self._draining:
            raise Unavailable("the expert store is shutting down")
        holder = f"session {next(self._numbers)}"
        outbox: Outbox = asyncio.Queue()
        self._outboxes[holder] = outbox
        receiving = asyncio.ensure_future(self._receive(holder, request_iterator, outbox))
        try:
            pools = self._owner.pools
            first = PoolSizes(pools[Pool.E].slots.first_generation, pools[Pool.SM].slots.first_generation, 0)
            await context.write(pb.ReadChunksResponse(opened=opened_message(first)))
            while (result := await outbox.get()) is not None:
                await context.write(pb.ReadChunksResponse(completed=[completed_message(result)]))
            self._owner.close(holder)
            while self._owner.writing(holder):  # clients rely on this: after the stream all slots are free
                await outbox.get()
            if receiving.done():
                receiving.result()
        finally:
            receiving.cancel()
            self._owner.close(holder)
            del self._outboxes[holder]
        if self._draining:
            raise Unavailable("the expert store is shutting down")

    async def _receive(self, holder: str, requests: AsyncIterator[pb.ReadChunksRequest], outbox: Outbox) -> None:
        try:
            async for request in requests:
                operations, refused = operations_of(request.operations)
                for result in refused + self._owner.apply(holder, operations):
                    outbox.put_nowait(result)
        finally:
            outbox.put_nowait(None)
