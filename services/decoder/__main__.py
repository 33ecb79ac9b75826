"""Boots the decoder: `python -m services.decoder --store DIR ...`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import structlog
from prometheus_client import CollectorRegistry

from services.decoder.client import SERVICE_NAME
from services.decoder.config import DecoderConfig
from services.decoder.desk import SessionDesk
from services.decoder.metrics import DecoderMetrics, DecoderState
from services.decoder.plan import recover_planner
from services.decoder.service import DecoderService
from services.decoder.session import TensorOwner
from services.decoder.store_link import StoreLink
from services.decoder.workers import WorkerPool
from services.expert_store.client import ArenaDescription
from zipmoe.arena.arena import Arena
from zipmoe.arena.broker import ArenaBroker
from zipmoe.arena.lease import SlotTable
from zipmoe.codec import create_codec
from zipmoe.errors import ZipMoeError
from zipmoe.internal.v1 import decoder_pb2_grpc
from zipmoe.rpc import logging
from zipmoe.rpc.client import target_of
from zipmoe.rpc.config import load_config
from zipmoe.rpc.metrics import service_registry, start_metrics_server
from zipmoe.rpc.server import ServiceHost
from zipmoe.store.manifest import read_manifest

OWNER_ID = "decoder"

_log = structlog.get_logger()


async def serve(config: DecoderConfig) -> None:
    """Runs a decoder until it is told to end.

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


async def _run(config: DecoderConfig, host: ServiceHost, registry: CollectorRegistry, work: ExitStack) -> None:
    sockets = config.sockets()
    manifest = read_manifest(config.store)
    slot_count = config.slot_count(manifest)
    codec = create_codec(manifest.codec_name, manifest.codec_parameters)
    host.listen(sockets.decoder)  # before any memory is taken: a second instance ends here

    metrics_server = start_metrics_server(config.metrics_port, registry, address=config.metrics_address)
    host.exit_stack.callback(metrics_server.stop)
    arena = Arena.create(OWNER_ID, manifest.max_tensor_bytes, slot_count, lock=config.lock_memory)
    broker = ArenaBroker(sockets.decoder_arena, arena)
    broker.start()
    host.exit_stack.callback(broker.stop)

    target = target_of(sockets.expert_store)
    mapping = ThreadPoolExecutor(1, "map-arena")
    link = StoreLink(target, manifest.digest, mapping, partial(host.set_serving, SERVICE_NAME))
    recover = ThreadPoolExecutor(config.workers, "recover")
    workers = WorkerPool(codec, recover, config.workers, lambda job: desk.recovered.post(job))
    owner = TensorOwner(
        recover_planner(manifest), arena, SlotTable(OWNER_ID, arena.epoch, slot_count), workers, config.verify_recovered
    )
    desk = SessionDesk(owner, link, target, DecoderMetrics(registry))
    registry.register(DecoderState(arena, owner.slots, workers, link, desk))
    description = ArenaDescription(
        OWNER_ID, arena.epoch, str(sockets.decoder_arena), arena.slot_bytes, arena.slot_count
    )
    service = DecoderService(desk, manifest.digest, description, config.workers)
    decoder_pb2_grpc.add_DecoderServiceServicer_to_server(service, host.server)

    work.callback(recover.shutdown)
    work.callback(workers.stop)
    work.callback(mapping.shutdown)
    workers.start()
    await host.start()
    linking = asyncio.ensure_future(link.run())
    _log.info(
        "started",
        store=manifest.digest,
        slots=arena.slot_count,
        arena_bytes=arena.nbytes,
        locked=arena.locked,
        lock_error=arena.lock_error,
        workers=config.workers,
        metrics_port=metrics_server.port,
    )
    draining = asyncio.ensure_future(_drain(host, desk))
    await host.run_until_signal()
    await draining
    linking.cancel()


async def _drain(host: ServiceHost, desk: SessionDesk) -> None:
    await host.draining.wait()
    desk.drain()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a decoder; returns the exit code, 2 if it could not start."""
    config = load_config(DecoderConfig, sys.argv[1:] if argv is None else argv)
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
