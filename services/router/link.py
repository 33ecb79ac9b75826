"""The router's attachment to the decoder: session, mapped tensor arena, and a fresh brain over both arenas."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import structlog

from services.decoder.client import DecoderDescription, FetchEvent, FetchSession, FetchSessionLost
from services.router.experts import ArenaExperts
from services.router.placement import ArenaPlacement
from services.router.tensors import ArenaTensors
from zipmoe.arena.broker import receive_arena
from zipmoe.errors import StoreMismatch, Unavailable, ZipMoeError
from zipmoe.residency.base import ArenaSlots, ResidencyPolicy
from zipmoe.residency.budget import MemorySplit
from zipmoe.store.manifest import Manifest

_LOG = structlog.get_logger(__name__)
_ARENA_TIMEOUT_S = 5.0
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)

PolicyFactory = Callable[[ArenaSlots, ArenaSlots], ResidencyPolicy]


class DecoderLink:
    """Keeps `experts` attached to one decoder.

    Thread: `attach_once` and `close` on the model thread; losses arrive on the session's reader thread.
    """

    def __init__(
        self,
        target: str,
        manifest: Manifest,
        experts: ArenaExperts,
        placement: ArenaPlacement,
        make_policy: PolicyFactory,
        split: MemorySplit | None,
    ) -> None:
        """Prepares the link; nothing is connected yet.

        Args:
            target: the decoder's gRPC address.
            manifest: of the store that the router itself has opened; the decoder has to serve the same.
            experts: what is attached.
            placement: told about every newly mapped arena.
            make_policy: makes the brain over (chunk slots, tensor slots).
            split: the router's own split of the memory budget, held against the decoder's; None without a budget.
        """
        self.experts = experts
        self.changed: Callable[[bool], None] = lambda connected: None
        self._target = target
        self._placement = placement
        self._manifest = manifest
        self._make_policy = make_policy
        self._split = split
        self._connected = threading.Event()
        self._closing = threading.Event()
        self._failures = 0

    @property
    def connected(self) -> bool:
        """Whether experts can be fetched, as far as is known."""
        return self._connected.is_set()

    def attach_once(self) -> bool:
        """Tries to attach; after a failure it first waits a little, longer each time.

        Returns:
            Whether the link is connected.

        Raises:
            StoreMismatch: the decoder serves another store, or was started with another memory budget.
        """
        self._detach()
        if self._failures:
            self._closing.wait(_BACKOFF_S[min(self._failures, len(_BACKOFF_S)) - 1])
        try:
            self._attach()
        except StoreMismatch:
            raise
        except ZipMoeError as error:
            self._failures += 1
            if self._failures == 1:
                _LOG.warning("decoder_unavailable", error=error.message)
            return False
        self._failures = 0
        return True

    def interrupt(self) -> None:
        """Ends a wait in `attach_once`, from any thread."""
        self._closing.set()

    def close(self) -> None:
        """Gives the session and the mapping up."""
        self._connected.clear()
        self._detach()

    def _detach(self) -> None:
        self._placement.release()
        self.experts.detach()

    def _attach(self) -> None:
        events: queue.SimpleQueue[FetchEvent] = queue.SimpleQueue()
        lost = threading.Event()

        def receive(event: FetchEvent) -> None:
            events.put(event)
            if isinstance(event, FetchSessionLost):
                lost.set()
                self._lose(event.error)

        session = FetchSession.open(self._target, receive)
        description = session.description
        try:
            self._check(description)
            arena = description.tensor_arena
            view = receive_arena(arena.broker_path, expected_epoch=arena.arena_epoch, timeout_s=_ARENA_TIMEOUT_S)
            self._placement.bind(view)
            tensors = ArenaTensors(view, [layer.spec for layer in self._manifest.layers])
        except BaseException:
            session.close()
            raise
        chunks = description.chunk_arena
        policy = self._make_policy(
            ArenaSlots(chunks.owner_id, chunks.arena_epoch, chunks.slot_count, session.first_chunk_generation),
            ArenaSlots(arena.owner_id, arena.arena_epoch, arena.slot_count, session.first_tensor_generation),
        )
        self.experts.attach(session, events, policy, tensors)
        self._connected.set()
        if lost.is_set():  # it came before `_connected` was set, so `_lose` took no notice
            self._connected.clear()
            raise Unavailable("the session with the decoder was lost as soon as it was opened")
        _LOG.info(
            "decoder_attached",
            tensor_slots=arena.slot_count,
            chunk_slots=chunks.slot_count,
            workers=description.worker_count,
        )
        self.changed(True)

    def _check(self, description: DecoderDescription) -> None:
        if description.store_digest != self._manifest.digest:
            raise StoreMismatch(
                f"the decoder serves store {description.store_digest}, the router {self._manifest.digest}"
            )
        theirs = (description.chunk_arena.slot_count, description.tensor_arena.slot_count)
        if self._split is not None and theirs != (self._split.chunk_slots, self._split.tensor_slots):
            raise StoreMismatch(
                f"the memory budget gives {self._split.chunk_slots} chunk slots and {self._split.tensor_slots} tensor "
                f"slots here, but the decoder reports {theirs[0]} and {theirs[1]}",
                next_step="start all services with the same --memory-budget, --kv-tokens, --max-prompt-tokens, "
                "--workers and --device",
            )

    def _lose(self, error: ZipMoeError) -> None:
        if self._connected.is_set():
            self._connected.clear()
            _LOG.warning("decoder_lost", error=error.message)
            self.changed(False)
