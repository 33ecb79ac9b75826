"""Client of the decoder, for synchronous callers: the decoder's description and a session of fetches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import grpc

from zipmoe.arena.description import ArenaDescription
from zipmoe.errors import ZipMoeError
from zipmoe.internal.v1 import decoder_pb2 as pb
from zipmoe.internal.v1 import decoder_pb2_grpc
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.residency.pools import Completed, Operations, SessionLost
from zipmoe.rpc.client import channel as open_channel
from zipmoe.rpc.status import to_error
from zipmoe.rpc.wire import arena_of, completed_of, generations_of, operations_message
from zipmoe.services.decoder.message_stream import MessageStream

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["DecoderService"].full_name

OPEN_TIMEOUT_S = 10.0
"""Longest wait for a session to open; the decoder first lets the running writes of an earlier session end."""

FetchEvent = Completed | SessionLost


class DecoderDescription(NamedTuple):
    """Description of a decoder.

    Attributes:
        store_digest: digest of the store's manifest, 16 hexadecimal digits.
        e_arena: arena of E-chunks of the expert store behind the decoder.
        sm_arena: likewise of SM-chunks.
        tensor_arena: arena of recovered tensors; None if the decoder has no tensor slot.
        worker_count: number of threads that recover tensors.
        tensor_form: form of recovered experts, as in `zipmoe.arena.tensor_form`.
    """

    store_digest: str
    e_arena: ArenaDescription
    sm_arena: ArenaDescription
    tensor_arena: ArenaDescription | None
    worker_count: int
    tensor_form: str


def describe_decoder(channel: grpc.Channel, timeout_s: float) -> DecoderDescription:
    """Asks a decoder for its description.

    Raises:
        Unavailable: the decoder does not answer, or has no expert store at the moment.
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
        response.tensor_form,
    )


class FetchSession:
    """A session of fetches and leases.

    `sink` receives a final `Completed` for every read and recovery, in any order. A report with `first_tensor_only`
    may come before the final one. At most one `SessionLost` comes, as the last event. The final result of a
    recovery never comes before the final results of the reads that the recovery waited for. Events come from the
    session's reader thread; `sink` must not block. The `put` of a `queue.SimpleQueue` is suitable.

    Attributes:
        description: the decoder and the arenas at the opening of the session.
        first_generations: smallest generation that the session may use on each arena; 0 for tensors without an arena.

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
    def open(cls, target: str, sink: Callable[[FetchEvent], None]) -> FetchSession:
        """Opens a session on the decoder at an address, over a separate connection.

        Raises:
            Unavailable: the decoder does not answer, is draining, or has no expert store at the moment.
            StoreMismatch: decoder and expert store were started on different stores.
            ResourceExhausted: another router has a session on the decoder.
            DeadlineExceeded: the decoder did not answer within `OPEN_TIMEOUT_S`.
        """
        channel = open_channel(target)
        session = cls(channel, sink)
        try:
            opened = session._stream.open(OPEN_TIMEOUT_S).opened
            # Asked for after the opening: if the store restarts in between, this session will be lost.
            session.description = describe_decoder(channel, OPEN_TIMEOUT_S)
        except BaseException:
            session.close()
            raise
        session.first_generations = generations_of(opened)
        return session

    def send(self, operations: Operations) -> None:
        """Sends a batch as one message. Never waits. After a loss the message is dropped."""
        self._stream.send(pb.FetchExpertsRequest(operations=operations_message(operations)))

    def close(self) -> None:
        """Ends the session and waits until the decoder has freed all slots of the session. Idempotent."""
        self._stream.close()
        self._channel.close()

    def _received(self, response: pb.FetchExpertsResponse) -> None:
        for completed in response.completed:
            self._sink(completed_of(completed))

    def _lost(self, error: ZipMoeError) -> None:
        self._sink(SessionLost(error))
