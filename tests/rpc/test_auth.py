"""Tokens guard every TCP port of a server that has one, and leave UNIX sockets and health alone."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.rpc.echo import ECHO, KINDS, SERVICE, add_echo, call, call_sync, handled
from zipmoe.errors import Unauthenticated
from zipmoe.rpc.auth import bearer_metadata
from zipmoe.rpc.client import channel
from zipmoe.rpc.status import to_error
from zipmoe.rpc.testing import served

TOKEN = "correct horse"


@pytest.fixture
async def guarded():
    """A server with a token, and a TCP channel to it."""

    def add(server):
        add_echo(**ECHO)(server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))

    ports = []
    async with served(add, [SERVICE], token=TOKEN) as test:
        with channel(f"127.0.0.1:{ports[0]}") as tcp:
            yield test, tcp


@pytest.mark.parametrize("kind", KINDS)
async def test_the_right_token_opens_every_kind_of_rpc(guarded, kind):
    _, tcp = guarded
    assert await asyncio.to_thread(call_sync, tcp, kind, b"x", metadata=bearer_metadata(TOKEN)) == [b"x"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ((), "this address needs a token"),
        (bearer_metadata("wrong"), "wrong token"),
        (bearer_metadata(TOKEN + "r"), "wrong token"),
        (bearer_metadata(""), "wrong token"),
        ((("authorization", TOKEN),), "wrong token"),
        ((("authorization", f"Basic {TOKEN}"),), "wrong token"),
        (bearer_metadata(TOKEN) * 2, "wrong token"),
    ],
)
async def test_anything_else_is_unauthenticated(guarded, kind, metadata, message):
    test, tcp = guarded
    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.to_thread(call_sync, tcp, kind, b"x", metadata=metadata)
    error = to_error(caught.value)
    assert (type(error), error.message) == (Unauthenticated, message)
    assert await handled(test.registry, kind) == {"UNAUTHENTICATED": 1}


async def test_a_unix_socket_needs_no_token(guarded):
    test, _ = guarded
    assert await call(test.channel, "unary_unary", b"x") == [b"x"]


async def test_health_needs_no_token(guarded):
    _, tcp = guarded
    check = health_pb2_grpc.HealthStub(tcp).Check
    answer = await asyncio.to_thread(check, health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
