"""How a process that owns arenas boots: what the expert store and the decoder have in common.

async with booted("decoder", [SERVICE_NAME]) as boot:
    boot.host.listen(...)
    arena = boot.serve_arena("decoder", slot_bytes, slot_count, path, lock=True)
    ...
    await boot.run_until_signal(service.drain)
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog
from prometheus_client import CollectorRegistry

from zipmoe.arena.arena import Arena
from zipmoe.arena.broker import ArenaBroker
from zipmoe.errors import ZipMoeError
from zipmoe.process import logging
from zipmoe.process.config import ServiceConfig, load_config
from zipmoe.rpc.metrics import service_registry, start_metrics_server
from zipmoe.rpc.server import ServiceHost

_LOG = structlog.get_logger(__name__)
_Config = TypeVar("_Config", bound=ServiceConfig)


@dataclass(frozen=True)
class Boot:
    """A service on its way up.

    Attributes:
        host: its gRPC server.
        registry: its metrics.
        work: what RPCs use; closed after the last of them, and not waited for after a second signal.
    """

    host: ServiceHost
    registry: CollectorRegistry
    work: ExitStack

    def start_metrics(self, config: ServiceConfig) -> int:
        """Shows the metrics until the end; returns the port.

        Raises:
            AlreadyRunning, InvalidRequest: the address cannot be bound.
        """
        server = start_metrics_server(config.metrics_port, self.registry, address=config.metrics_address)
        self.host.exit_stack.callback(server.stop)
        return server.port

    def serve_arena(self, owner_id: str, slot_bytes: int, slot_count: int, path: Path, *, lock: bool) -> Arena:
        """Allocates an arena and hands it out on a socket until the end; raises as `Arena.create` and the broker do."""
        arena = Arena.create(owner_id, slot_bytes, slot_count, lock=lock)
        broker = ArenaBroker(path, arena)
        broker.start()
        self.host.exit_stack.callback(broker.stop)
        return arena

    async def run_until_signal(self, drain: Callable[[], None]) -> None:
        """Serves until a signal; then `drain` is called, so that long sessions end, and the server stops."""
        draining = asyncio.ensure_future(_drain(self.host, drain))
        await self.host.run_until_signal()
        await draining


@asynccontextmanager
async def booted(service: str, service_names: Sequence[str]) -> AsyncIterator[Boot]:
    """A server that nothing listens on yet; in the end, however it comes, nothing of it is left behind.

    Args:
        service: the process's name in logs and metrics.
        service_names: full names of the gRPC services.
    """
    registry = service_registry(service)
    host = ServiceHost(service, registry, service_names)
    with ExitStack() as work:
        try:
            yield Boot(host, registry, work)
        finally:
            await host.stop()


def run_service(
    service: str,
    config_class: type[_Config],
    serve: Callable[[_Config], Coroutine[object, object, None]],
    argv: Sequence[str] | None,
) -> int:
    """Runs a service with the settings of a command line, by default this process's.

    Returns:
        The exit code: 0 in the end, 2 if it could not start.
    """
    config = load_config(config_class, sys.argv[1:] if argv is None else argv)
    logging.configure(service, config.log_level, config.log_format)
    _LOG.info("starting", **config.resolved())
    try:
        asyncio.run(serve(config))
    except ZipMoeError as error:
        _LOG.error("cannot_run", error=type(error).__name__, reason=error.message, next_step=error.diagnostics())
        return 2
    return 0


def memory_of(*arenas: Arena) -> dict[str, object]:
    """What a service's log says of its arenas."""
    return {
        "arena_bytes": sum(arena.nbytes for arena in arenas),
        "locked": all(arena.locked for arena in arenas),
        "lock_error": next((arena.lock_error for arena in arenas if not arena.locked), None),
        "huge_page_bytes": sum(arena.huge_page_bytes for arena in arenas),
        "huge_page_error": next((arena.huge_page_error for arena in arenas if arena.huge_page_error), None),
    }


async def _drain(host: ServiceHost, drain: Callable[[], None]) -> None:
    await host.draining.wait()
    drain()
