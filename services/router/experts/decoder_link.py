"""The router's session with one decoder, opened and reopened by a separate thread.

link thread:   open session -> map arenas -> Attached | LinkRefused -> wait for the loss -> again, with growing pauses
model thread:  takes the events of all links from one queue; attaches and forgets decoders as it processes them
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from zipmoe.arena.arena import ArenaView
from zipmoe.arena.broker import receive_arena
from zipmoe.arena.description import ArenaDescription
from zipmoe.arena.tensor_form import TensorForm
from zipmoe.errors import StoreMismatch, Unavailable, ZipMoeError
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.residency.pools import Completed, DecoderSlots, Pool, PoolSlots, SessionLost
from zipmoe.services.decoder.client import DecoderDescription, FetchEvent, FetchSession
from zipmoe.services.router.experts.views import ExpertViews
from zipmoe.store.format.manifest import Manifest

_LOG = structlog.get_logger(__name__)
_ARENA_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 10.0
_CLOSED = SessionLost(Unavailable("the session with the decoder was closed"))
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Attached:
    """A decoder has attached, with empty arenas: its session, the slots to assign, and views of the mapped arenas."""

    session: FetchSession
    slots: DecoderSlots
    views: ExpertViews


@dataclass(frozen=True)
class LinkRefused:
    """A decoder can never be attached: it was started on another store or with another memory budget."""

    error: ZipMoeError


@dataclass(frozen=True)
class LinkEvent:
    """An event of a decoder link or of the link's session."""

    decoder_id: str
    event: Attached | LinkRefused | FetchEvent


INTERRUPT = LinkEvent("", Completed(0, None))
"""Ends a wait for events and is otherwise ignored: no operation has the id 0."""

LinkEvents: TypeAlias = "queue.SimpleQueue[LinkEvent]"


class DecoderLink:
    """Keeps a session open with one decoder.

    Attributes:
        decoder_id: gRPC target of the decoder.
        connected: whether a session is open, as far as is known.

    Thread: `start`, `close` and `connected` from any.
    """

    def __init__(
        self,
        target: str,
        manifest: Manifest,
        slots: PoolSizes | None,
        tensor_form: TensorForm,
        events: LinkEvents,
        changed: Callable[[], None],
    ) -> None:
        """Prepares the link; nothing is connected yet.

        Args:
            target: the decoder's gRPC address.
            manifest: manifest of the router's store; the decoder must serve the same store.
            slots: slots of each pool by the router's own split of the memory budget; None without a budget.
            tensor_form: the form that recovered experts have to have.
            events: queue that receives the events.
            changed: callback, called from the link thread whenever `connected` may have changed.
        """
        self.decoder_id = target
        self.connected = False
        self._manifest = manifest
        self._slots = slots
        self._tensor_form = tensor_form
        self._events = events
        self._changed = changed
        self._lost = threading.Event()
        self._loss = _CLOSED
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def start(self) -> None:
        """Starts the link thread, which connects."""
        self._thread.start()

    def close(self) -> None:
        """Ends the session and the thread. Idempotent."""
        self._closing.set()
        self._lost.set()
        if self._thread.ident is not None:
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        failures = 0
        while not self._closing.wait(_BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1] if failures else 0):
            self._lost.clear()
            self._loss = _CLOSED
            try:
                session = FetchSession.open(self.decoder_id, self._receive)
                self._serve(session)
            except StoreMismatch as error:
                self._report(LinkRefused(error))
                return
            except ZipMoeError as error:
                failures += 1
                if failures == 1:
                    _LOG.warning("decoder_unavailable", decoder=self.decoder_id, error=error.message)
            else:
                failures = 1

    def _serve(self, session: FetchSession) -> None:
        try:
            description = session.description
            self._check(description)
            views = ExpertViews(
                self._manifest,
                _map(description.e_arena),
                _map(description.sm_arena),
                None if description.tensor_arena is None else _map(description.tensor_arena),
                self._tensor_form,
            )
            self._report(Attached(session, _slots_of(self.decoder_id, session), views))
            self.connected = not self._lost.is_set()
            self._changed()
            _LOG.info(
                "decoder_attached",
                decoder=self.decoder_id,
                slots=str(_counts(description)),
                workers=description.worker_count,
            )
            if not self._closing.is_set():  # `close` sets `_closing` first; `_run` may have cleared `_lost` since
                self._lost.wait()
        finally:
            self.connected = False
            self._report(self._loss)  # reported here alone, so that the loss never precedes `Attached`
            self._changed()
            session.close()

    def _check(self, description: DecoderDescription) -> None:
        if description.store_digest != self._manifest.digest:
            raise StoreMismatch(
                f"the decoder serves store {description.store_digest}, the router {self._manifest.digest}"
            )
        if description.tensor_form != self._tensor_form:
            raise StoreMismatch(
                f"the decoder recovers experts to {description.tensor_form}, the router expects {self._tensor_form}",
                next_step="start decoder and router with the same --tensor-form",
            )
        theirs = _counts(description)
        if self._slots is not None and theirs != self._slots:
            raise StoreMismatch(
                f"the memory budget gives {self._slots} slots (E, SM, tensor) here, but the decoder reports {theirs}",
                next_step="start all services with the same --memory-budget, --cache-slots, --kv-tokens, --kv-cache, "
                "--tensor-form, --max-prompt-tokens, --workers and --device",
            )

    def _receive(self, event: FetchEvent) -> None:
        if isinstance(event, SessionLost):
            if self.connected:
                _LOG.warning("decoder_lost", decoder=self.decoder_id, error=event.error.message)
            self._loss = event
            self._lost.set()
        else:
            self._report(event)

    def _report(self, event: Attached | LinkRefused | FetchEvent) -> None:
        self._events.put(LinkEvent(self.decoder_id, event))


def _map(arena: ArenaDescription) -> ArenaView:
    return receive_arena(arena.broker_path, expected_epoch=arena.arena_epoch, timeout_s=_ARENA_TIMEOUT_S)


def _counts(description: DecoderDescription) -> PoolSizes:
    tensor = 0 if description.tensor_arena is None else description.tensor_arena.slot_count
    return PoolSizes(description.e_arena.slot_count, description.sm_arena.slot_count, tensor)


def _slots_of(decoder_id: str, session: FetchSession) -> DecoderSlots:
    description = session.description
    arenas = (description.e_arena, description.sm_arena, description.tensor_arena)
    pools = [
        PoolSlots(pool, "", 0, 0, first)
        if arena is None
        else PoolSlots(pool, arena.owner_id, arena.arena_epoch, arena.slot_count, first)
        for pool, arena, first in zip(Pool, arenas, session.first_generations, strict=True)
    ]
    return DecoderSlots(decoder_id, description.worker_count, pools)
