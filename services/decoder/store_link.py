"""The decoder's tie to its expert store: attaches, notices a loss at once, attaches again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.expert_store.client import ArenaDescription, describe_store
from zipmoe.arena.arena import ArenaView
from zipmoe.arena.broker import receive_arena
from zipmoe.errors import StoreMismatch, Unavailable, ZipMoeError
from zipmoe.rpc.client import channel as open_channel
from zipmoe.rpc.status import to_error

STORE_SERVICE = "zipmoe.internal.v1.ExpertStoreService"
ANSWER_TIMEOUT_S = 2.0
FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 1.0

_log = structlog.get_logger()


@dataclass(frozen=True)
class ChunkArena:
    """One life of the store's arena: how it is described, and its mapping, which lasts as long as somebody uses it."""

    description: ArenaDescription
    view: ArenaView


class StoreLink:
    """Keeps the decoder attached to the expert store at one address, with backoff.

    Thread: `run` occupies one thread until `stop`; everything else from any. `changed` is called from that thread when
    the link has been made or lost.
    """

    def __init__(self, target: str, store_digest: str, changed: Callable[[], object]) -> None:
        self._target = target
        self._store_digest = store_digest
        self._changed = changed
        self._stopping = threading.Event()
        self._arena: ChunkArena | None = None
        self._error: ZipMoeError = Unavailable(f"not yet attached to the expert store at {target}")
        self._watch: Any = None

    @property
    def attached(self) -> bool:
        """Whether the store is there and serving."""
        return self._arena is not None

    def chunk_arena(self) -> ChunkArena:
        """The arena of the store's present life.

        Raises:
            Unavailable: there is no store at the moment.
            StoreMismatch: the expert store was started on another store than this decoder.
        """
        arena = self._arena
        if arena is None:
            raise self._error
        return arena

    def run(self) -> None:
        """Attaches, waits for the loss, and begins again, until `stop`."""
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            # A channel of its own for each attempt: a used one waits out gRPC's backoff before it connects again.
            channel = open_channel(self._target)
            try:
                self._attach(channel)
                backoff_s = FIRST_BACKOFF_S
                self._wait_for_loss()
            except ZipMoeError as error:
                self._detach(error)
            finally:
                channel.close()
            self._stopping.wait(backoff_s)
            backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)

    def stop(self) -> None:
        """Ends `run`."""
        self._stopping.set()
        watch = self._watch
        if watch is not None:
            watch.cancel()

    def _attach(self, channel: grpc.Channel) -> None:
        description = describe_store(channel, ANSWER_TIMEOUT_S)
        if description.store_digest != self._store_digest:
            raise StoreMismatch(
                f"the expert store at {self._target} serves store {description.store_digest}, "
                f"this decoder was started on {self._store_digest}"
            )
        arena = description.chunk_arena
        view = receive_arena(arena.broker_path, expected_epoch=arena.arena_epoch, timeout_s=ANSWER_TIMEOUT_S)
        health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs lack Watch
        self._watch = health.Watch(health_pb2.HealthCheckRequest(service=STORE_SERVICE))
        if self._stopping.is_set():  # `stop` may have looked for the watch too early
            self._watch.cancel()
        self._arena = ChunkArena(arena, view)
        _log.info("attached to the expert store", target=self._target, slots=arena.slot_count)
        self._changed()

    def _wait_for_loss(self) -> None:
        try:
            for update in self._watch:
                if update.status != health_pb2.HealthCheckResponse.SERVING:
                    raise Unavailable(f"the expert store at {self._target} is not serving")
        except grpc.RpcError as failure:
            raise Unavailable(f"the expert store at {self._target} is gone: {to_error(failure).message}") from None
        raise Unavailable(f"the expert store at {self._target} is gone")

    def _detach(self, error: ZipMoeError) -> None:
        if self._arena is not None:
            self._arena = None  # not closed: workers may still read it; it is unmapped with its last view
            if not self._stopping.is_set():
                _log.warning("lost the expert store", reason=error.message)
            self._changed()
        elif type(error) is not type(self._error):
            _log.warning("cannot attach to the expert store", reason=error.message, next_step=error.diagnostics())
        self._error = error
