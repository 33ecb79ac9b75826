"""What the router needs of a decoder: its description, and a session of fetches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import grpc

from zipmoe.errors import ZipMoeError
from zipmoe.internal.v1 import decoder_pb2 as pb
from zipmoe.internal.v1 import decoder_pb2_grpc
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.residency.pools import Operations
from zipmoe.rpc.client import channel as open_channel
from zipmoe.rpc.status import to_error
from zipmoe.services.decoder.message_stream import MessageStream
from zipmoe.services.decoder.operations import FetchResult, FetchSessionLost
from zipmoe.services.decoder.wire import operations_message, results_of
from zipmoe.services.expert_store.client import ArenaDescription, arena_of

__all__ = [
    "SERVICE_NAME",
    "ArenaDescription",
    "DecoderDescription",
    "FetchEvent",
    "FetchResult",
    "FetchSession",
    "FetchSessionLost",
    "describe_decoder",
]

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["DecoderService"].full_name

OPEN_TIMEOUT_S = 10.0
"""Longest wait for a session to open; the decoder first lets the running writes of a predecessor end."""

FetchEvent = FetchResult | FetchSessionLost


class DecoderDescription(NamedTuple):
    """What a decoder says about itself.

    Attributes:
        store_digest: digest of the store's manifest, 16 hexadecimal digits.
        e_arena: the arena of E-chunks of the expert store behind it.
        sm_arena: likewise of SM-chunks.
        tensor_arena: the arena that it recovers into; None if it has no slot for that.
        worker_count: its threads that recover tensors.
    """

    store_digest: str
    e_arena: ArenaDescription
    sm_arena: ArenaDescription
    tensor_arena: ArenaDescription | None
    worker_count: int


def describe_decoder(channel: grpc.Channel, timeout_s: float) -> DecoderDescription:
    """Asks a decoder for its description.

    Raises:
        Unavailable: nobody answers, or the decoder has no expert store at the moment.
        StoreMismatch: decoder and expert store were started on different stores.
        DeadlineExceeded: the answer did not come within `timeout_s`.
    """
    try:
        response = decoder_pb2_grpc.DecoderServiceStub(channel).DescribeDecoder(
            pb.DescribeDecoderRequest(), timeout=timeout_s
        )
    except grpc.RpcError as failure:
        raise to_error(failure) from None
    return DecoderDescription(
        response.store_digest,
        arena_of(response.e_arena),
        arena_of(response.sm_arena),
        arena_of(response.tensor_arena) if response.HasField("tensor_arena") else None,
        response.worker_count,
    )


class FetchSession:
    """One session of fetches and leases.

    `sink` receives a `FetchResult` for every read and recovery, in any order, before it perhaps one that says
    `first_tensor_only`, and at most one `FetchSessionLost`, as the last event. A recovery's end never comes before
    those of the reads it waited for. Events come from the session's reader thread; `sink` must not block. A
    `queue.SimpleQueue`'s `put` will do.

    Attributes:
        description: the decoder and the arenas, as they were when the session opened.
        first_generations: the smallest generation that this session may use on each arena; 0 for the tensor arena where
            there is none.

    Thread: safe from any.
    """

    description: DecoderDescription
    first_generations: PoolSizes

    def __init__(self, channel: grpc.Channel, sink: Callable[[FetchEvent], None]) -> None:
        """Use `open`."""
        self._channel = channel
        self._sink = sink
        stub = decoder_pb2_grpc.DecoderServiceStub(channel)
        self._stream: MessageStream[pb.FetchExpertsRequest, pb.FetchExpertsResponse]
        self._stream = MessageStream("fetch session", stub.FetchExperts, self._received, self._lost)

    @classmethod
    def open(cls, target: str, sink: Callable[[FetchEvent], None], timeout_s: float = OPEN_TIMEOUT_S) -> FetchSession:
        """Opens a session on the decoder at an address, over a connection of its own.

        Raises:
            Unavailable: nobody answers, the decoder is draining, or it has no expert store at the moment.
            StoreMismatch: decoder and expert store were started on different stores.
            ResourceExhausted: another router has a session there.
            DeadlineExceeded: the decoder did not answer within `timeout_s`.
        """
        channel = open_channel(target)
        session = cls(channel, sink)
        try:
            opened = session._stream.open(timeout_s).opened
            # Asked for afterwards: should the store have restarted meanwhile, then this session will be lost.
            session.description = describe_decoder(channel, timeout_s)
        except BaseException:
            session.close()
            raise
        session.first_generations = PoolSizes(
            opened.first_e_generation, opened.first_sm_generation, opened.first_tensor_generation
        )
        return session

    def send(self, operations: Operations) -> None:
        """Sends one batch as one message. Never waits. After a loss it goes nowhere."""
        self._stream.send(operations_message(operations))

    def close(self) -> None:
        """Ends the session and waits until the decoder has let go of all its slots. Idempotent."""
        self._stream.close()
        self._channel.close()

    def _received(self, response: pb.FetchExpertsResponse) -> None:
        for result in results_of(response):
            self._sink(result)

    def _lost(self, error: ZipMoeError) -> None:
        self._sink(FetchSessionLost(error))
