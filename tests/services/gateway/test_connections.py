"""Connections: idle ones live for a while and make room for others, those with a request stay."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import pytest

from tests.cli.fake_router import FakeRouter
from tests.services.gateway.running import MODEL, Front, front
from zipmoe.errors import InvalidRequest
from zipmoe.process.config import parse_config
from zipmoe.services.gateway.config import GatewayConfig
from zipmoe.services.gateway.connections import ConnectionLimits, ConnectionPlaces

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
BODY = json.dumps({"model": MODEL, "prompt": "Hi", "stream": True}).encode()
STREAM = (
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


@dataclass(eq=False)
class Played:
    """A connection that notes who was closed."""

    name: str
    closed: list[str] = field(default_factory=list)

    def close(self) -> None:
        self.closed.append(self.name)


@dataclass
class Wire:
    """A raw connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes = HEALTH) -> bytes:
        """Sends a request and reads the headers of the answer, and a body of a known length."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        if found := re.search(rb"content-length: (\d+)", head):
            await self.reader.readexactly(int(found[1]))
        return head

    async def ended(self) -> None:
        """Reads to the end."""
        await self.reader.read()


@asynccontextmanager
async def wires(gateway: Front, count: int) -> AsyncIterator[list[Wire]]:
    opened: list[Wire] = []
    try:
        while len(opened) < count:
            opened.append(Wire(*await asyncio.open_connection("127.0.0.1", gateway.host.port)))
        yield opened
    finally:
        for wire in opened:
            wire.writer.close()


def test_the_longest_idle_connection_makes_room_first() -> None:
    closed: list[str] = []
    places = ConnectionPlaces(8)
    first, second, *others = [Played(name, closed) for name in "abcdefg"]
    for connection in (first, second, *others):
        assert places.take(connection)
    assert repr(places) == "7 open, 7 idle, 8 places"
    places.answers(first)
    assert places.take(Played("h", closed))
    assert closed == ["b"], "one place of eight stays free, and a connection with a request stays"
    places.idles(first)
    places.leave(others[0])
    places.leave(others[0])
    assert places.take(Played("i", closed)) and closed == ["b"]
    assert places.take(Played("j", closed)) and closed == ["b", "d"], "idle again, the first has become the last"


def test_without_an_idle_connection_the_last_places_are_taken_and_then_none() -> None:
    closed: list[str] = []
    places = ConnectionPlaces(8)
    busy = [Played(str(number), closed) for number in range(8)]
    for connection in busy:
        assert places.take(connection)
        places.answers(connection)
    assert not places.take(Played("more", closed))
    assert (repr(places), closed) == ("8 open, 0 idle, 8 places", [])
    places.leave(busy[0])
    assert places.take(Played("more", closed))


async def test_idle_connections_make_room_for_new_ones_and_streams_stay() -> None:
    router = FakeRouter(hangs=True)
    async with front(router, max_connections=8) as gateway, wires(gateway, 7) as (streaming, asked, *silent):
        assert (await streaming.ask(STREAM)).startswith(b"HTTP/1.1 200")
        assert (await silent[0].ask()).startswith(b"HTTP/1.1 200")
        assert (await asked.ask()).startswith(b"HTTP/1.1 200")
        async with wires(gateway, 2) as more:
            for wire in more:
                assert (await wire.ask()).startswith(b"HTTP/1.1 200")
            await silent[1].ended()
            await silent[2].ended()
            assert (await asked.ask()).startswith(b"HTTP/1.1 200"), "it has been idle for a shorter time"
        router.release()
        assert b"[DONE]" in await streaming.reader.readuntil(b"0\r\n\r\n")


async def test_a_connection_too_many_is_told_so() -> None:
    router = FakeRouter(hangs=True)
    async with front(router, max_connections=2) as gateway, wires(gateway, 2) as busy:
        for wire in busy:
            assert (await wire.ask(STREAM)).startswith(b"HTTP/1.1 200")
        async with wires(gateway, 1) as (refused,):
            answer = await refused.reader.read()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in head
        assert json.loads(body)["error"]["code"] == "too_many_connections"
        router.release()


@pytest.mark.parametrize("begin", [b"", b"GET /healthz HT", HEALTH + b"GET /hea"], ids=["none", "begun", "second"])
async def test_a_connection_without_a_whole_request_ends(begin: bytes) -> None:
    async with front(idle_timeout_s=0.05) as gateway, wires(gateway, 1) as (wire,):
        wire.writer.write(begin)
        await wire.ended()


async def test_a_request_that_takes_longer_than_idleness_may_is_answered() -> None:
    router = FakeRouter(hangs=True)
    async with front(router, idle_timeout_s=0.05, keep_alive_s=0.02) as gateway, wires(gateway, 2) as (wire, idle):
        assert (await wire.ask(STREAM)).startswith(b"HTTP/1.1 200")
        await idle.ended()
        await wire.reader.readuntil(b": keep-alive")
        router.release()
        await wire.reader.readuntil(b"[DONE]")


def test_idle_connections_live_for_75_s() -> None:
    assert parse_config(GatewayConfig, []).idle_timeout_s == 75


@contextmanager
def open_files(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_stay_below_the_limit_of_open_files() -> None:
    with open_files(600):
        assert ConnectionLimits.here(None, 75.0).most == 536
        assert ConnectionLimits.here(500, 75.0).most == 500
        with pytest.raises(InvalidRequest, match="need 664 open files, this process may have 600") as caught:
            ConnectionLimits.here(600, 75.0)
    assert "--max-connections=536" in caught.value.diagnostics()


async def test_tcp_asks_silent_clients_for_a_sign_of_life() -> None:
    async with front() as gateway:
        listening = gateway.host._sockets[0]
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
