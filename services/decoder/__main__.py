"""Boots the decoder: `python -m zipmoe.services.decoder --store DIR ...`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from zipmoe.arena.description import ArenaDescription
from zipmoe.arena.leased_arena import LeasedArena
from zipmoe.codec.registry import create_codec
from zipmoe.internal.v1 import decoder_pb2_grpc
from zipmoe.planning.memory_split import slot_bytes
from zipmoe.process.boot import Boot, booted, memory_of, run_service
from zipmoe.process.job import JobEvent
from zipmoe.process.task_pool import TaskPool
from zipmoe.rpc.client import target_of
from zipmoe.services.decoder.client import SERVICE_NAME
from zipmoe.services.decoder.config import DecoderConfig
from zipmoe.services.decoder.job import RecoverJob
from zipmoe.services.decoder.metrics import DecoderMetrics, DecoderState
from zipmoe.services.decoder.plan import recover_planner
from zipmoe.services.decoder.recovered_form import recovered_form
from zipmoe.services.decoder.service import DecoderService
from zipmoe.services.decoder.session import TensorOwner
from zipmoe.services.decoder.single_session import SingleSession
from zipmoe.services.decoder.store_link import StoreLink
from zipmoe.store.format.manifest import read_manifest

OWNER_ID = "decoder"

_LOG = structlog.get_logger(__name__)


async def serve(config: DecoderConfig) -> None:
    """Runs a decoder until a signal ends the process.

    Raises:
        ZipMoeError: the start failed; nothing is left behind.
    """
    async with booted(OWNER_ID, [SERVICE_NAME]) as boot:
        await _run(config, boot)


async def _run(config: DecoderConfig, boot: Boot) -> None:
    sockets = config.sockets()
    manifest = read_manifest(config.store)
    slot_count, size = config.slots(manifest).tensor, slot_bytes(manifest, config.tensor_form).tensor
    codec = create_codec(manifest.codec_name, manifest.codec_parameters)
    form = recovered_form(config.tensor_form, manifest, codec)
    host, registry, work = boot.host, boot.registry, boot.work
    host.listen(sockets.decoder)  # before any memory is taken: a second instance ends here

    metrics_port = boot.start_metrics(config)
    tensors: LeasedArena | None = None
    if slot_count:
        arena = boot.serve_arena(OWNER_ID, size, slot_count, sockets.tensor_arena, lock=config.lock_memory)
        tensors = LeasedArena.of(arena)

    target = target_of(sockets.expert_store)
    mapping = ThreadPoolExecutor(1, "map-arena")
    link = StoreLink(target, manifest.digest, mapping, partial(host.set_serving, SERVICE_NAME))

    def reported(event: JobEvent[RecoverJob]) -> None:
        sessions.recovered.post(event)  # the sessions are made below; no worker recovers before them

    threads = ThreadPoolExecutor(config.workers, "recover")
    workers = TaskPool(RecoverJob.recover, threads, config.workers, reported)
    owner = TensorOwner(recover_planner(manifest, config.tensor_form), tensors, workers, form, config.verify_recovered)
    sessions = SingleSession(owner, link, target, DecoderMetrics(registry))
    registry.register(DecoderState(tensors, workers, link, sessions))
    described = None if tensors is None else ArenaDescription.of(tensors.arena, sockets.tensor_arena)
    service = DecoderService(sessions, manifest.digest, described, config.workers, config.tensor_form)
    decoder_pb2_grpc.add_DecoderServiceServicer_to_server(service, host.server)

    work.callback(threads.shutdown)
    work.callback(workers.stop)
    work.callback(mapping.shutdown)
    workers.start()
    await host.start()
    linking = asyncio.ensure_future(link.run())
    _LOG.info(
        "started",
        store=manifest.digest,
        tensor_slots=slot_count,
        tensor_form=config.tensor_form,
        **memory_of(*([] if tensors is None else [tensors.arena])),
        workers=config.workers,
        metrics_port=metrics_port,
    )
    await boot.run_until_signal(sessions.drain)
    linking.cancel()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a decoder; returns the exit code, 2 if the start failed."""
    return run_service(OWNER_ID, DecoderConfig, serve, argv)


if __name__ == "__main__":
    sys.exit(main())
