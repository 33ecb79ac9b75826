"""Keeps the decoder attached to the expert store: notices a loss at once and attaches again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from zipmoe.arena.arena import ArenaView
from zipmoe.arena.broker import receive_arena
from zipmoe.arena.description import ArenaDescription
from zipmoe.errors import InternalError, StoreMismatch, Unavailable, ZipMoeError
from zipmoe.rpc.client import aio_channel
from zipmoe.rpc.status import to_error
from zipmoe.services.expert_store.client import SERVICE_NAME, describe_store

ANSWER_TIMEOUT_S = 2.0
FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 1.0

_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True)
class MappedArena:
    """An arena of the attached store: description and mapping. The mapping lasts until its last use ends."""

    description: ArenaDescription
    view: ArenaView


@dataclass(frozen=True)
class StoreArenas:
    """Both arenas of the attached store: E-chunks and SM-chunks."""

    e: MappedArena
    sm: MappedArena


class StoreLink:
    """Keeps the decoder attached to the expert store at one address, with backoff.

    Thread: the event loop's only. `changed` is called on the loop when the link is made or lost. Arenas are mapped on
    `executor`, since mapping waits for the store's broker.
    """

    def __init__(self, target: str, store_digest: str, executor: Executor, changed: Callable[[bool], None]) -> None:
        self._target = target
        self._store_digest = store_digest
        self._executor = executor
        self._changed = changed
        self._arenas: StoreArenas | None = None
        self._error: ZipMoeError = Unavailable(f"not yet attached to the expert store at {target}")

    @property
    def attached(self) -> bool:
        """Whether the store is attached and serving."""
        return self._arenas is not None

    def arenas(self) -> StoreArenas:
        """Returns the arenas of the attached store.

        Raises:
            Unavailable: no store is attached at the moment.
            StoreMismatch: the expert store was started on another store than this decoder.
        """
        if self._arenas is None:
            raise self._error
        return self._arenas

    async def run(self) -> None:
        """Attaches, waits for a loss and attaches again, until cancelled."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            # A new channel for each attempt: a used channel waits out gRPC's backoff before the next connection.
            async with aio_channel(self._target) as channel:
                try:
                    await self._attach(channel)
                    backoff_s = FIRST_BACKOFF_S
                    await self._wait_for_loss(channel)
                except ZipMoeError as error:
                    self._detach(error)
                except Exception:
                    _LOG.exception("store_link_failed")
                    self._detach(InternalError("the link to the expert store failed, see the log of the decoder"))
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)

    async def _attach(self, channel: grpc.aio.Channel) -> None:
        description = await describe_store(channel, ANSWER_TIMEOUT_S)
        if description.store_digest != self._store_digest:
            raise StoreMismatch(
                f"the expert store at {self._target} serves store {description.store_digest}, "
                f"this decoder was started on {self._store_digest}"
            )
        e_arena = await self._map(description.e_arena)
        self._arenas = StoreArenas(e_arena, await self._map(description.sm_arena))
        e_slots, sm_slots = description.e_arena.slot_count, description.sm_arena.slot_count
        _LOG.info("store_attached", target=self._target, e_slots=e_slots, sm_slots=sm_slots)
        self._changed(True)

    async def _map(self, arena: ArenaDescription) -> MappedArena:
        receive = partial(
            receive_arena, arena.broker_path, expected_epoch=arena.arena_epoch, timeout_s=ANSWER_TIMEOUT_S
        )
        return MappedArena(arena, await asyncio.get_running_loop().run_in_executor(self._executor, receive))

    async def _wait_for_loss(self, channel: grpc.aio.Channel) -> None:
        health: Any = health_pb2_grpc.HealthStub(channel)  # the type stubs lack Watch
        try:
            async for update in health.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME)):
                if update.status != health_pb2.HealthCheckResponse.SERVING:
                    raise Unavailable(f"the expert store at {self._target} is not serving")
        except grpc.RpcError as failure:
            raise Unavailable(f"the expert store at {self._target} is gone: {to_error(failure).message}") from None
        raise Unavailable(f"the expert store at {self._target} is gone")

    def _detach(self, error: ZipMoeError) -> None:
        if self._arenas is not None:
            self._arenas = None  # not closed, as workers may still read; the last view of an arena unmaps it
            _LOG.warning("store_lost", reason=error.message)
            self._changed(False)
        elif type(error) is not type(self._error):
            _LOG.warning("store_unavailable", reason=error.message, next_step=error.diagnostics())
        self._error = error
