"""What the router needs of a decoder: its description, and a session of fetches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc

from services.decoder.duplex import DuplexStream
from services.decoder.operations import FetchResult, FetchSessionLost
from services.expert_store.client import ArenaDescription, arena_of, key_message, slot_message
from zipmoe.errors import ZipMoeError
from zipmoe.internal.v1 import decoder_pb2 as pb
from zipmoe.internal.v1 import decoder_pb2_grpc
from zipmoe.residency.base import Read, Recover
from zipmoe.rpc.client import channel as open_channel
from zipmoe.rpc.status import error_of, to_error
from zipmoe.types import SlotRef

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
        chunk_arena: the arena of the expert store behind it.
        tensor_arena: the arena that it recovers into.
        worker_count: its threads that recover tensors.
    """

    store_digest: str
    chunk_arena: ArenaDescription
    tensor_arena: ArenaDescription
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
        response.store_digest, arena_of(response.chunk_arena), arena_of(response.tensor_arena), response.worker_count
    )


class FetchSession:
    """One session of fetches and leases.

    `sink` receives a `FetchResult` for every read and recovery, in any order, and at most one `FetchSessionLost`, as
    the last event. A recovery's result never comes before that of the read it waited for. Events come from the
    session's reader thread; `sink` must not block. A `queue.SimpleQueue`'s `put` will do.

    Attributes:
        description: the decoder and both arenas, as they were when the session opened.
        first_chunk_generation: the smallest generation that this session may use on the chunk arena.
        first_tensor_generation: the smallest generation that this session may use on the tensor arena.

    Thread: safe from any.
    """

    description: DecoderDescription
    first_chunk_generation: int
    first_tensor_generation: int

    def __init__(self, channel: grpc.Channel, sink: Callable[[FetchEvent], None]) -> None:
        """Use `open`."""
        self._channel = channel
        self._sink = sink
        stub = decoder_pb2_grpc.DecoderServiceStub(channel)
        self._stream: DuplexStream[pb.FetchExpertsRequest, pb.FetchExpertsResponse]
        self._stream = DuplexStream("fetch session", stub.FetchExperts, self._received, self._lost)

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
        session.first_chunk_generation = opened.first_chunk_generation
        session.first_tensor_generation = opened.first_tensor_generation
        return session

    def send(
        self,
        chunk_releases: Sequence[SlotRef] = (),
        tensor_releases: Sequence[SlotRef] = (),
        reads: Sequence[Read] = (),
        recoveries: Sequence[Recover] = (),
    ) -> None:
        """Sends one batch as one message: releases, applied first, then reads and recoveries, most urgent first.

        Never waits. After a loss it goes nowhere.
        """
        self._stream.send(
            pb.FetchExpertsRequest(
                chunk_releases=[slot_message(ref) for ref in chunk_releases],
                tensor_releases=[slot_message(ref) for ref in tensor_releases],
                reads=[
                    pb.ReadFetch(
                        operation_id=read.operation_id,
                        key=key_message(read.key),
                        parts=int(read.parts),
                        chunk_slot=slot_message(read.chunk_slot),
                    )
                    for read in reads
                ],
                recoveries=[
                    pb.RecoverFetch(
                        operation_id=fetch.operation_id,
                        key=key_message(fetch.key),
                        chunk_slot=slot_message(fetch.chunk_slot),
                        tensor_slot=slot_message(fetch.tensor_slot),
                    )
                    for fetch in recoveries
                ],
            )
        )

    def close(self) -> None:
        """Ends the session and waits until the decoder has let go of all its slots. Idempotent."""
        self._stream.close()
        self._channel.close()

    def _received(self, response: pb.FetchExpertsResponse) -> None:
        for completed in response.completed.completions:
            error = error_of(completed.status)
            self._sink(FetchResult(completed.operation_id, error, completed.bytes_read, completed.work_s))

    def _lost(self, error: ZipMoeError) -> None:
        self._sink(FetchSessionLost(error))
