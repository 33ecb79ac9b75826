"""A real server and channel for tests, on a UNIX socket in a temporary directory.

async with served(lambda server: add_FooServicer_to_server(Foo(), server), ["my.Foo"]) as test:
    await FooStub(test.channel).Bar(...)
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from prometheus_client import CollectorRegistry

from zipmoe.rpc.client import aio_channel
from zipmoe.rpc.server import ServiceHost


@dataclass(frozen=True)
class Served:
    """A running server: `path` is its socket, `channel` an open asyncio channel, `registry` the metrics."""

    host: ServiceHost
    path: Path
    channel: grpc.aio.Channel
    registry: CollectorRegistry


@asynccontextmanager
async def served(
    add_servicers: Callable[[grpc.aio.Server], None], service_names: Sequence[str] = (), *, token: str | None = None
) -> AsyncIterator[Served]:
    """Runs servicers in a `ServiceHost` until the block ends; every service reports SERVING.

    Args:
        add_servicers: adds the servicers to the server.
        service_names: full gRPC names of the services.
        token: token that TCP clients would have to show.
    """
    registry = CollectorRegistry()
    # Not pytest's tmp_path, which can be longer than a socket path may be.
    with tempfile.TemporaryDirectory(prefix="zipmoe-") as directory:
        host = ServiceHost("test", registry, service_names, token=token, grace_s=0.0)
        try:
            add_servicers(host.server)
            path = Path(directory) / "test.sock"
            host.listen_unix(path)
            await host.start()
            for name in service_names:
                host.set_serving(name, True)
            async with aio_channel(path) as channel:
                yield Served(host, path, channel, registry)
        finally:
            await host.stop()
