"""Client of the expert store, for asyncio: the store's description and a session of reads.

The decoder forwards between two streams on one event loop. A synchronous client would put two more threads into the
path of every read, and each thread would wait for the interpreter lock (benchmarks/NOTES.md, "Fetch latency").
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, cast

import grpc
import grpc.aio
import structlog

from zipmoe.arena.description import ArenaDescription
from zipmoe.errors import DeadlineExceeded, InternalError, Unavailable, ZipMoeError
from zipmoe.internal.v1 import expert_store_pb2 as pb
from zipmoe.internal.v1 import expert_store_pb2_grpc
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.residency.pools import Completed, Operations, SessionLost
from zipmoe.rpc.client import aio_channel
from zipmoe.rpc.status import to_error
from zipmoe.rpc.wire import arena_of, completed_of, generations_of, operations_message

_LOG = structlog.get_logger(__name__)

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["ExpertStoreService"].full_name

OPEN_TIMEOUT_S = 5.0
"""Longest wait for a session to open; the store answers at once unless it is gone."""

CLOSE_TIMEOUT_S = 5.0
"""Longest wait for the store to end a closed session; the store lets requests at the disk end first."""


class StoreDescription(NamedTuple):
    """Description of an expert store: digest of the manifest (16 hexadecimal digits) and arenas."""

    store_digest: str
    e_arena: ArenaDescription
    sm_arena: ArenaDescription


async def describe_store(channel: grpc.aio.Channel, timeout_s: float) -> StoreDescription:
    """Asks an expert store for its description.

    Raises:
        Unavailable: the store does not answer.
        DeadlineExceeded: the answer did not come within `timeout_s`.
    """
    stub = expert_store_pb2_grpc.ExpertStoreServiceStub(channel)
    try:
        response = await stub.DescribeStore(pb.DescribeStoreRequest(), timeout=timeout_s)
    except grpc.RpcError as failure:
        raise to_error(failure) from None
    return StoreDescription(response.store_digest, arena_of(response.e_arena), arena_of(response.sm_arena))


class StoreSession:
    """A session of reads and leases, over a separate connection.

    `sink` receives a final `Completed` for every read, in any order. A report with `first_tensor_only` may come before
    the final one. At most one `SessionLost` comes, as the last event.

    Attributes:
        first_generations: smallest generation that the session may use on each arena; 0 for tensors.

    Thread: the event loop's only; `sink` is called on the loop.
    """

    first_generations: PoolSizes

    def __init__(self, target: str, sink: Callable[[Completed | SessionLost], None]) -> None:
        """Use `open`."""
        self._sink = sink
        self._channel = aio_channel(target)
        self._call = expert_store_pb2_grpc.ExpertStoreServiceStub(self._channel).ReadChunks()
        self._outgoing: asyncio.Queue[pb.ReadChunksRequest | None] = asyncio.Queue()  # None ends the stream
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(cls, target: str, sink: Callable[[Completed | SessionLost], None]) -> StoreSession:
        """Opens a session on the store at an address.

        Raises:
            Unavailable: the store does not answer, or is draining.
            DeadlineExceeded: the store did not answer within `OPEN_TIMEOUT_S`.
        """
        session = cls(target, sink)
        try:
            first = await asyncio.wait_for(session._read(), OPEN_TIMEOUT_S)
        except BaseException as failure:
            await session._channel.close()
            if isinstance(failure, asyncio.TimeoutError):
                raise DeadlineExceeded(f"the expert store did not open a session within {OPEN_TIMEOUT_S:g} s") from None
            raise
        session.first_generations = generations_of(first.opened)
        session._tasks = [asyncio.ensure_future(session._send_all()), asyncio.ensure_future(session._receive_all())]
        return session

    def send(self, operations: Operations) -> None:
        """Sends the store's share of a batch: cancels, releases, reads. After a loss the message is dropped."""
        self._outgoing.put_nowait(pb.ReadChunksRequest(operations=operations_message(operations)))

    async def close(self) -> None:
        """Ends the session and waits until the store has freed all slots of the session."""
        self._closing = True
        self._outgoing.put_nowait(None)
        await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT_S)
        self._call.cancel()
        await self._channel.close()
        await asyncio.wait(self._tasks)

    async def _send_all(self) -> None:
        with suppress(grpc.RpcError, asyncio.InvalidStateError, asyncio.CancelledError):  # `_receive_all` reports why
            while (message := await self._outgoing.get()) is not None:
                await self._call.write(message)
            await self._call.done_writing()

    async def _receive_all(self) -> None:
        try:
            while True:
                for completed in (await self._read()).completed:
                    self._sink(completed_of(completed))
        except ZipMoeError as error:
            self._lose(error)
        except Exception:
            _LOG.exception("response_unhandled")
            self._call.cancel()
            self._lose(InternalError("a response of the expert store could not be handled, see the log"))

    def _lose(self, error: ZipMoeError) -> None:
        self._outgoing.put_nowait(None)
        if not self._closing:
            self._sink(SessionLost(error))

    async def _read(self) -> pb.ReadChunksResponse:
        try:
            response = await self._call.read()
        except grpc.RpcError as failure:
            raise to_error(failure) from None
        except asyncio.CancelledError:
            if not self._call.cancelled():
                raise
            raise Unavailable("the session with the expert store was cut off") from None
        if response is grpc.aio.EOF:
            raise Unavailable("the expert store has ended the session")
        return cast(pb.ReadChunksResponse, response)
