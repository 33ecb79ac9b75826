"""Boots the expert store: `python -m services.expert_store --store DIR ...`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import structlog
from prometheus_client import CollectorRegistry

from services.expert_store.channel import ReadChannel
from services.expert_store.client import SERVICE_NAME
from services.expert_store.config import StoreConfig
from services.expert_store.inbox import LoopInbox
from services.expert_store.job import ReadJob
from services.expert_store.metrics import StoreMetrics, StoreState
from services.expert_store.owner import ChunkOwner
from services.expert_store.plan import read_planner
from services.expert_store.service import ExpertStoreService
from services.expert_store.wire import ArenaDescription
from zipmoe.arena.arena import Arena
from zipmoe.arena.broker import ArenaBroker
from zipmoe.errors import ZipMoeError
from zipmoe.internal.v1 import expert_store_pb2_grpc
from zipmoe.rpc import logging
from zipmoe.rpc.config import load_config
from zipmoe.rpc.metrics import service_registry, start_metrics_server
from zipmoe.rpc.server import ServiceHost
from zipmoe.store.manifest import read_manifest
from zipmoe.store.reader import StoreReader

OWNER_ID = "expert-store"

_log = structlog.get_logger()


async def serve(config: StoreConfig) -> None:
    """Runs an expert store until it is told to end.

    Raises:
        ZipMoeError: it cannot start; nothing is left behind.
    """
    registry = service_registry(OWNER_ID)
    host = ServiceHost(OWNER_ID, registry, [SERVICE_NAME])
    with ExitStack() as work:  # what RPCs use; closed after the last of them, and not waited for after a second signal
        try:
            await _run(config, host, registry, work)
        finally:
            await host.stop()


async def _run(config: StoreConfig, host: ServiceHost, registry: CollectorRegistry, work: ExitStack) -> None:
    sockets = config.sockets()
    manifest = read_manifest(config.store)
    slot_count = config.slot_count(manifest)
    host.listen(sockets.expert_store)  # before any memory is taken: a second instance ends here

    metrics_server = start_metrics_server(config.metrics_port, registry, address=config.metrics_address)
    host.exit_stack.callback(metrics_server.stop)
    reader = StoreReader(config.store, manifest)
    work.callback(reader.close)
    arena = Arena.create(OWNER_ID, manifest.max_record_bytes, slot_count, lock=config.lock_memory)
    broker = ArenaBroker(sockets.expert_store_arena, arena)
    broker.start()
    host.exit_stack.callback(broker.stop)

    io = ThreadPoolExecutor(config.io_threads, "io")
    inbox: LoopInbox[ReadJob] = LoopInbox(asyncio.get_running_loop(), lambda job: service.read_ended(job))
    channel = ReadChannel(reader, io, config.io_threads, inbox.post)
    work.callback(io.shutdown)
    work.callback(channel.stop)
    owner = ChunkOwner(arena, channel, read_planner(reader, config.request_bytes))
    description = ArenaDescription(
        OWNER_ID, arena.epoch, str(sockets.expert_store_arena), arena.slot_bytes, arena.slot_count
    )
    service = ExpertStoreService(owner, manifest.digest, description, StoreMetrics(registry))
    registry.register(StoreState(arena, owner.slots, reader, channel, service))
    expert_store_pb2_grpc.add_ExpertStoreServiceServicer_to_server(service, host.server)

    channel.start()
    await host.start()
    host.set_serving(SERVICE_NAME, True)
    _log.info(
        "serving",
        store=manifest.digest,
        slots=arena.slot_count,
        arena_bytes=arena.nbytes,
        locked=arena.locked,
        lock_error=arena.lock_error,
        direct_io=reader.direct,
        metrics_port=metrics_server.port,
    )
    draining = asyncio.ensure_future(_drain(host, service))
    await host.run_until_signal()
    await draining


async def _drain(host: ServiceHost, service: ExpertStoreService) -> None:
    await host.draining.wait()
    service.drain()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an expert store; returns the exit code, 2 if it could not start."""
    config = load_config(StoreConfig, sys.argv[1:] if argv is None else argv)
    logging.configure(OWNER_ID, config.log_level, config.log_format)
    _log.info("starting", **config.resolved())
    try:
        asyncio.run(serve(config))
    except ZipMoeError as error:
        _log.error("cannot run", error=type(error).__name__, reason=error.message, next_step=error.diagnostics())
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
