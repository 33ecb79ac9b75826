"""Boots the expert store: `python -m zipmoe.services.expert_store --store DIR ...`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from zipmoe.arena.description import ArenaDescription
from zipmoe.internal.v1 import expert_store_pb2_grpc
from zipmoe.planning.memory_split import slot_bytes
from zipmoe.process.boot import Boot, booted, memory_of, run_service
from zipmoe.process.job import JobEvent
from zipmoe.process.loop_queue import LoopQueue
from zipmoe.process.task_pool import TaskPool
from zipmoe.services.expert_store.client import SERVICE_NAME
from zipmoe.services.expert_store.config import StoreConfig
from zipmoe.services.expert_store.job import ReadJob
from zipmoe.services.expert_store.measured_disk import MeasuredDisk
from zipmoe.services.expert_store.metrics import StoreMetrics, StoreState
from zipmoe.services.expert_store.plan import read_planner
from zipmoe.services.expert_store.service import ExpertStoreService
from zipmoe.services.expert_store.session import ReadSessions
from zipmoe.store.format.manifest import read_manifest
from zipmoe.store.read.reader import StoreReader

NAME = "expert-store"
E_OWNER_ID = "expert-store/e"
SM_OWNER_ID = "expert-store/sm"

_LOG = structlog.get_logger(__name__)


async def serve(config: StoreConfig) -> None:
    """Runs an expert store until a signal ends the process.

    Raises:
        ZipMoeError: the start failed; nothing is left behind.
    """
    async with booted(NAME, [SERVICE_NAME]) as boot:
        await _run(config, boot)


async def _run(config: StoreConfig, boot: Boot) -> None:
    sockets = config.sockets()
    manifest = read_manifest(config.store)
    slots, size = config.slots(manifest), slot_bytes(manifest)
    host, registry, work = boot.host, boot.registry, boot.work
    host.listen(sockets.expert_store)  # before any memory is taken: a second instance ends here

    metrics_port = boot.start_metrics(config)
    reader = StoreReader(config.store, manifest)
    work.callback(reader.close)
    e_arena = boot.serve_arena(E_OWNER_ID, size.e, slots.e, sockets.e_arena, lock=config.lock_memory)
    sm_arena = boot.serve_arena(SM_OWNER_ID, size.sm, slots.sm, sockets.sm_arena, lock=config.lock_memory)

    def reported(event: JobEvent[ReadJob]) -> None:
        service.read_reported(event)  # the service is made below; no thread reads before it

    threads = ThreadPoolExecutor(config.io_threads, "io")
    inbox = LoopQueue(asyncio.get_running_loop(), reported)
    disk = MeasuredDisk(reader)
    io = TaskPool(disk.read, threads, config.io_threads, inbox.post)
    work.callback(threads.shutdown)
    work.callback(io.stop)
    owner = ReadSessions(e_arena, sm_arena, io, read_planner(reader, config.request_bytes))
    service = ExpertStoreService(
        owner,
        manifest.digest,
        ArenaDescription.of(e_arena, sockets.e_arena),
        ArenaDescription.of(sm_arena, sockets.sm_arena),
        StoreMetrics(registry),
    )
    registry.register(StoreState(owner, reader, io, disk, service))
    expert_store_pb2_grpc.add_ExpertStoreServiceServicer_to_server(service, host.server)

    io.start()
    await host.start()
    host.set_serving(SERVICE_NAME, True)
    _LOG.info(
        "serving",
        store=manifest.digest,
        e_slots=slots.e,
        sm_slots=slots.sm,
        **memory_of(e_arena, sm_arena),
        direct_io=reader.direct,
        metrics_port=metrics_port,
    )
    await boot.run_until_signal(service.drain)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an expert store; returns the exit code, 2 if the start failed."""
    return run_service(NAME, StoreConfig, serve, argv)


if __name__ == "__main__":
    sys.exit(main())
