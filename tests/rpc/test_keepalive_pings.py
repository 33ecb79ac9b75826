"""Pings of gRPC clients, in raw HTTP/2 frames: allowed without a call, and too many end the connection."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from zipmoe.rpc import server
from zipmoe.rpc.testing import served

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1
ENHANCE_YOUR_CALM = 11


def frame(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + bytes(4) + payload


async def pinged(path: Path, count: int) -> list[int]:
    """Sends pings one after the other on a connection without a call; what came back, as kinds of frames."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(PREFACE + frame(SETTINGS))
    kinds: list[int] = []
    for number in range(count):
        writer.write(frame(PING, number.to_bytes(8, "big")))
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == PING and not head[4] & ACK:
                writer.write(frame(PING, payload, ACK))  # the server measures the connection itself
            elif head[3] in (PING, GOAWAY):
                kinds.append(head[3])
                break
        if kinds[-1] == GOAWAY:
            assert int.from_bytes(payload[4:8], "big") == ENHANCE_YOUR_CALM
            break
    writer.close()
    return kinds


def test_a_ping_every_ten_seconds_is_allowed() -> None:
    assert dict(server._KEEPALIVE)["grpc.http2.min_ping_interval_without_data_ms"] == 10_000


async def test_pings_without_a_call_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**dict(server._KEEPALIVE), "grpc.http2.min_ping_interval_without_data_ms": 0}
    monkeypatch.setattr(server, "_KEEPALIVE", tuple(options.items()))
    async with served(lambda _: None) as test:
        assert await pinged(test.path, 8) == [PING] * 8


async def test_pings_in_a_hurry_end_the_connection() -> None:
    async with served(lambda _: None) as test:
        assert (await pinged(test.path, 8))[-1] == GOAWAY
