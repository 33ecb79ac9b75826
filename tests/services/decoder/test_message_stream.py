"""The synchronous end of a long stream: how it opens, how it is lost, how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from queue import SimpleQueue
from typing import Any

import grpc
import grpc.aio
import pytest

from zipmoe.errors import DeadlineExceeded, InternalError, ResourceExhausted, Unavailable, ZipMoeError
from zipmoe.internal.v1 import decoder_pb2 as pb
from zipmoe.internal.v1 import decoder_pb2_grpc, types_pb2
from zipmoe.rpc.client import channel
from zipmoe.rpc.testing import served
from zipmoe.services.decoder.message_stream import MessageStream


class Peer(decoder_pb2_grpc.DecoderServiceServicer):
    """Answers each batch with a completion that bears the number of its reads; the test says how it begins and ends."""

    def __init__(self) -> None:
        self.refusal: ZipMoeError | None = None
        self.silent = False
        self.ended = threading.Event()

    async def FetchExperts(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.FetchExpertsRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.FetchExpertsResponse]:
        if self.refusal is not None:
            raise self.refusal
        if self.silent:
            await asyncio.Event().wait()
        yield pb.FetchExpertsResponse(opened=types_pb2.SessionOpened(first_e_generation=7))
        async for request in request_iterator:
            if not request.operations.reads:
                raise Unavailable("had enough")
            completion = types_pb2.Completed(operation_id=len(request.operations.reads))
            yield pb.FetchExpertsResponse(completed=[completion])
        self.ended.set()


class Stream:
    """A stream to the peer, with what it reported."""

    def __init__(self, opened: grpc.Channel, received: Callable[[Any], None] | None = None) -> None:
        self.events: SimpleQueue[Any] = SimpleQueue()
        method = decoder_pb2_grpc.DecoderServiceStub(opened).FetchExperts
        self.duplex: MessageStream[pb.FetchExpertsRequest, pb.FetchExpertsResponse]
        self.duplex = MessageStream("stream", method, received or self.events.put, self.events.put)

    def send(self, reads: int) -> None:
        operations = types_pb2.Operations(reads=[types_pb2.Read()] * reads)
        self.duplex.send(pb.FetchExpertsRequest(operations=operations))


async def with_stream(test: Callable[[Peer, grpc.Channel], None]) -> None:
    """Runs a synchronous test beside the loop that serves the peer."""
    peer = Peer()

    def add(server: grpc.aio.Server) -> None:
        decoder_pb2_grpc.add_DecoderServiceServicer_to_server(peer, server)

    def run() -> None:
        with channel(running.path) as opened:
            test(peer, opened)

    async with served(add) as running:
        await asyncio.get_running_loop().run_in_executor(None, run)


async def test_responses_arrive_in_order_and_closing_waits_for_the_peer() -> None:
    def test(peer: Peer, opened: grpc.Channel) -> None:
        stream = Stream(opened)
        assert stream.duplex.open(10.0).opened.first_e_generation == 7
        for reads in (1, 2, 3):
            stream.send(reads)
        for reads in (1, 2, 3):
            assert stream.events.get(timeout=10.0).completed[0].operation_id == reads
        stream.duplex.close()
        stream.duplex.close()
        assert peer.ended.is_set()
        assert stream.events.empty()  # what one has ended oneself is not lost

    await with_stream(test)


async def test_a_refusal_is_raised_where_the_stream_is_opened() -> None:
    def test(peer: Peer, opened: grpc.Channel) -> None:
        peer.refusal = ResourceExhausted("occupied", retry_after_s=3.0)
        stream = Stream(opened)
        with pytest.raises(ResourceExhausted, match="occupied") as raised:
            stream.duplex.open(10.0)
        assert raised.value.retry_after_s == 3.0
        assert stream.events.empty()

    await with_stream(test)


async def test_a_peer_that_does_not_answer_in_time_is_given_up() -> None:
    def test(peer: Peer, opened: grpc.Channel) -> None:
        peer.silent = True
        with pytest.raises(DeadlineExceeded, match="did not open"):
            Stream(opened).duplex.open(0.01)

    await with_stream(test)


async def test_a_loss_is_told_once_and_last() -> None:
    def test(peer: Peer, opened: grpc.Channel) -> None:
        stream = Stream(opened)
        stream.duplex.open(10.0)
        stream.send(5)
        stream.send(0)
        assert stream.events.get(timeout=10.0).completed[0].operation_id == 5
        lost = stream.events.get(timeout=10.0)
        assert isinstance(lost, Unavailable)
        assert lost.message == "had enough"
        stream.send(6)  # goes nowhere
        stream.duplex.close()
        assert stream.events.empty()

    await with_stream(test)


async def test_a_receiver_that_fails_ends_the_stream_with_an_internal_error() -> None:
    def fail(response: pb.FetchExpertsResponse) -> None:
        raise ZeroDivisionError

    def test(peer: Peer, opened: grpc.Channel) -> None:
        stream = Stream(opened, fail)
        stream.duplex.open(10.0)
        stream.send(1)
        assert isinstance(stream.events.get(timeout=10.0), InternalError)
        stream.duplex.close()

    await with_stream(test)
