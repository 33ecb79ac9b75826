"""A service of raw bytes with one method of each kind, whose behaviour a test chooses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry

SERVICE = "test.Echo"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def add_echo(**behaviours: Callable[..., Any]) -> Callable[[grpc.aio.Server], None]:
    """Returns what adds a service with the given behaviours, by kind, as methods of the same names."""
    handlers = {kind: getattr(grpc, f"{kind}_rpc_method_handler")(made) for kind, made in behaviours.items()}

    def add(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    return add


async def call(
    channel: grpc.aio.Channel, kind: str, *requests: bytes, into: list[bytes] | None = None, **options: Any
) -> list[bytes]:
    """Calls a method of the service and returns all its responses; `into` has those before an error."""
    responses = [] if into is None else into
    method = getattr(channel, kind)(f"/{SERVICE}/{kind}")
    begun = method(iter(requests) if kind.startswith("stream") else requests[0], **options)
    if not kind.endswith("stream"):
        return [await begun]
    try:
        async for response in begun:
            responses.append(response)
    finally:
        begun.cancel()  # cancelling the task alone does not always reach the RPC
    return responses


def call_sync(channel: grpc.Channel, kind: str, *requests: bytes, **options: Any) -> list[bytes]:
    """The same through a synchronous channel."""
    method = getattr(channel, kind)(f"/{SERVICE}/{kind}")
    begun = method(iter(requests) if kind.startswith("stream") else requests[0], **options)
    return list(begun) if kind.endswith("stream") else [begun]


async def handled(registry: CollectorRegistry, kind: str) -> dict[str, float]:
    """Waits until an RPC of a kind has ended on the server (a client can know before); returns counts by status."""
    while not (found := _handled(registry, kind)):  # noqa: ASYNC110 - a registry has no event
        await asyncio.sleep(0)
    return found


def _handled(registry: CollectorRegistry, kind: str) -> dict[str, float]:
    return {
        sample.labels["grpc_code"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "grpc_server_handled_total" and sample.labels["grpc_method"] == kind
    }


def raising(error: BaseException) -> dict[str, Callable[..., Any]]:
    """Behaviours of every kind that raise; the streaming ones after one response.

    They read all requests first: if an RPC ends while grpc.aio's client still writes, it reports an error of its own.
    """

    async def unary(request: Any, _context: Any) -> bytes:
        await _drain(request)
        raise error

    async def stream(request: Any, _context: Any) -> Any:
        await _drain(request)
        yield b"first"
        raise error

    return {"unary_unary": unary, "stream_unary": unary, "unary_stream": stream, "stream_stream": stream}


async def _drain(request: Any) -> None:
    if hasattr(request, "__aiter__"):
        async for _ in request:
            pass


async def echo_unary(request: bytes, _context: Any) -> bytes:
    return request


async def echo_stream(requests: Any, _context: Any) -> Any:
    async for request in requests:
        yield request


async def join(requests: Any, _context: Any) -> bytes:
    return b"".join([request async for request in requests])


async def spell(request: bytes, _context: Any) -> Any:
    for letter in request:
        yield bytes([letter])


ECHO: dict[str, Callable[..., Any]] = {
    "unary_unary": echo_unary,
    "unary_stream": spell,
    "stream_unary": join,
    "stream_stream": echo_stream,
}
