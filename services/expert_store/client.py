"""What the decoder needs of an expert store: its description, and a session of reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc

from services.expert_store.duplex import DuplexStream
from services.expert_store.inbox import LoopInbox
from services.expert_store.operations import ReadResult, SessionLost
from services.expert_store.wire import (
    ArenaDescription,
    arena_message,
    arena_of,
    key_message,
    key_of,
    parts_of,
    slot_message,
    slot_of,
)
from zipmoe.errors import ZipMoeError
from zipmoe.internal.v1 import expert_store_pb2, expert_store_pb2_grpc
from zipmoe.residency.base import Read
from zipmoe.rpc.client import channel as open_channel
from zipmoe.rpc.status import error_of, to_error
from zipmoe.types import SlotRef

__all__ = [
    "ArenaDescription",
    "DuplexStream",
    "LoopInbox",
    "ReadResult",
    "SessionLost",
    "StoreDescription",
    "StoreSession",
    "arena_message",
    "arena_of",
    "describe_store",
    "key_message",
    "key_of",
    "parts_of",
    "slot_message",
    "slot_of",
]

OPEN_TIMEOUT_S = 5.0
"""Longest wait for a session to open; the store answers at once unless it is gone."""


class StoreDescription(NamedTuple):
    """What an expert store says about itself: digest of its manifest (16 hexadecimal digits) and its arena."""

    store_digest: str
    chunk_arena: ArenaDescription


def describe_store(channel: grpc.Channel, timeout_s: float) -> StoreDescription:
    """Asks an expert store for its description.

    Raises:
        Unavailable: nobody answers.
        DeadlineExceeded: the answer did not come within `timeout_s`.
    """
    stub = expert_store_pb2_grpc.ExpertStoreServiceStub(channel)
    try:
        response = stub.DescribeStore(expert_store_pb2.DescribeStoreRequest(), timeout=timeout_s)
    except grpc.RpcError as failure:
        raise to_error(failure) from None
    return StoreDescription(response.store_digest, arena_of(response.chunk_arena))


class StoreSession:
    """One session of reads and leases.

    `sink` receives a `ReadResult` for every read, in any order, and at most one `SessionLost`, as the last event.
    Events come from the session's reader thread; `sink` must not block. A `queue.SimpleQueue`'s `put` will do.

    Attributes:
        first_generation: the smallest generation that this session may use.

    Thread: safe from any.
    """

    first_generation: int

    def __init__(self, channel: grpc.Channel, sink: Callable[[ReadResult | SessionLost], None]) -> None:
        """Use `open`."""
        self._channel = channel
        self._sink = sink
        stub = expert_store_pb2_grpc.ExpertStoreServiceStub(channel)
        self._stream: DuplexStream[expert_store_pb2.ReadChunksRequest, expert_store_pb2.ReadChunksResponse]
        self._stream = DuplexStream("read session", stub.ReadChunks, self._received, self._lost)

    @classmethod
    def open(
        cls,
        target: str,
        sink: Callable[[ReadResult | SessionLost], None],
        timeout_s: float = OPEN_TIMEOUT_S,
    ) -> StoreSession:
        """Opens a session on the store at an address, over a connection of its own.

        Raises:
            Unavailable: nobody answers, or the store is draining.
            DeadlineExceeded: the store did not answer within `timeout_s`.
        """
        session = cls(open_channel(target), sink)
        try:
            session.first_generation = session._stream.open(timeout_s).opened.first_generation
        except BaseException:
            session.close()
            raise
        return session

    def send(self, releases: Sequence[SlotRef], reads: Sequence[Read]) -> None:
        """Sends one batch: releases, applied first, and reads, most urgent first. Never waits."""
        self._stream.send(
            expert_store_pb2.ReadChunksRequest(
                releases=[slot_message(ref) for ref in releases],
                reads=[
                    expert_store_pb2.ReadOperation(
                        operation_id=read.operation_id,
                        key=key_message(read.key),
                        parts=int(read.parts),
                        slot=slot_message(read.chunk_slot),
                    )
                    for read in reads
                ],
            )
        )

    def close(self) -> None:
        """Ends the session and waits until the store has let go of all its slots. Idempotent."""
        self._stream.close()
        self._channel.close()

    def _received(self, response: expert_store_pb2.ReadChunksResponse) -> None:
        completed = response.completed
        error = error_of(completed.status)
        self._sink(ReadResult(completed.operation_id, error, completed.bytes_read, completed.read_s))

    def _lost(self, error: ZipMoeError) -> None:
        self._sink(SessionLost(error))
