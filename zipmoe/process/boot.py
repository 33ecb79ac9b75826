"""Boot sequence of a process that owns arenas, shared by the expert store and the decoder.

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
from zipmoe.process.metrics import service_registry, start_metrics_server
from zipmoe.rpc.server import ServiceHost

_LOG = structlog.get_logger(__name__)
_Config = TypeVar("_Config", bound=ServiceConfig)


@dataclass(frozen=True)
class Boot:
    """A service that is starting.

    Attributes:
        host: the gRPC server.
        registry: the registry of the metrics.
        work: resources that RPCs use; closed after the last RPC, or left open if a second signal ends the process.
    """

    host: ServiceHost
    registry: CollectorRegistry
    work: ExitStack

    def start_metrics(self, config: ServiceConfig) -> int:
        """Serves the metrics until the end; returns the port.

        Raises:
            AlreadyRunning, InvalidRequest: the address cannot be bound.
        """
        server = start_metrics_server(config.metrics_port, self.registry, address=config.metrics_address)
        self.host.exit_stack.callback(server.stop)
        return server.port

    def serve_arena(self, owner_id: str, slot_bytes: int, slot_count: int, path: Path, *, lock: bool) -> Arena:
        """Allocates an arena and hands it out on a socket until the end; raises as `Arena` and `ArenaBroker` do."""
        arena = Arena.create(owner_id, slot_bytes, slot_count, lock=lock)
        broker = ArenaBroker(path, arena)
        broker.start()
        self.host.exit_stack.callback(broker.stop)
        return arena

    async def run_until_signal(self, drain: Callable[[], None]) -> None:
        """Serves until a signal, then calls `drain`, so that long sessions end, and stops the server."""
        draining = asyncio.ensure_future(_drain(self.host, drain))
        await self.host.run_until_signal()
        await draining


@asynccontextmanager
async def booted(service: str, service_names: Sequence[str]) -> AsyncIterator[Boot]:
    """Builds a server that does not listen yet; at the end of the block, also after an error, cleans up everything.

    Args:
        service: the process's name in logs and metrics.
        service_names: full names of the gRPC services.
    """
    registry = service_registry(service)
    with ExitStack() as work:
        async with ServiceHost(service, registry, service_names) as host:
            yield Boot(host, registry, work)


def run_service(
    service: str,
    config_class: type[_Config],
    serve: Callable[[_Config], Coroutine[object, object, None]],
    argv: Sequence[str] | None,
) -> int:
    """Runs a service with the settings of `argv`, by default this process's command line.

    Returns:
        The exit code: 0 after a signal, 2 if the service could not start.
    """
    config = load_config(config_class, sys.argv[1:] if argv is None else argv)
    logging.configure(service, config.log_level, config.log_format)
    _LOG.info("starting", **config.resolved())
    return run_to_exit_code(serve(config))


def run_to_exit_code(serving: Coroutine[object, object, None]) -> int:
    """Runs a service and returns the exit code: 0 after a signal, 2 with a log line if the service could not start."""
    try:
        asyncio.run(serving)
    except ZipMoeError as error:
        _LOG.error("cannot_run", error=type(error).__name__, reason=error.message, next_step=error.diagnostics())
        return 2
    return 0


def memory_of(*arenas: Arena) -> dict[str, object]:
    """Returns the facts about arenas that a service logs: bytes, locking, huge pages."""
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
