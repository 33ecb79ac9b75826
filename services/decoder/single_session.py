"""Opens the decoder's only session, and closes it: running recoveries end first, then the session at the store."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from itertools import count

from zipmoe.errors import ResourceExhausted, Unavailable
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.process.job import JobEvent
from zipmoe.process.loop_queue import LoopQueue
from zipmoe.residency.pools import Completed, SessionLost
from zipmoe.services.decoder.job import RecoverJob
from zipmoe.services.decoder.metrics import DecoderMetrics
from zipmoe.services.decoder.outbox import Outbox
from zipmoe.services.decoder.session import RouterSession, TensorOwner
from zipmoe.services.decoder.store_link import StoreArenas, StoreLink
from zipmoe.services.expert_store.client import StoreSession

SUCCESSION_TIMEOUT_S = 5.0
"""Longest wait of a new session until the running writes of the earlier session have ended."""


@dataclass(frozen=True)
class OpenSession:
    """The session of a router, together with the session at the store.

    `first_generations` are the smallest generations that the router may use on each arena; 0 for tensors without a
    tensor arena.
    """

    domain: RouterSession
    store: StoreSession
    outbox: Outbox
    first_generations: PoolSizes


class SingleSession:
    """Opens one session at a time, passes on the reports of workers and store, and closes the session.

    At the end of a session the running recoveries end first, since they read chunk slots and write tensor slots. Then
    the session at the store is closed, which frees the chunk slots. Only then the next session is opened.

    `recovered` is the queue of the workers' reports on recoveries.

    Thread: the event loop's only, but for `recovered.post`.
    """

    def __init__(self, owner: TensorOwner, link: StoreLink, store_target: str, metrics: DecoderMetrics) -> None:
        self._owner = owner
        self._link = link
        self._store_target = store_target
        self._metrics = metrics
        self.recovered: LoopQueue[JobEvent[RecoverJob]] = LoopQueue(asyncio.get_running_loop(), self._recover_reported)
        self._numbers = count(1)
        self._session: OpenSession | None = None
        self._vacant = asyncio.Event()  # cleared from before a session opens until all its slots are free
        self._vacant.set()
        self._ending = False
        self._progress = asyncio.Event()  # set at every report on a recovery
        self._draining = False
        self._tidying: asyncio.Future[None] | None = None  # closes a session after its opener was cancelled

    @property
    def session_count(self) -> int:
        """Number of open sessions: 0 or 1."""
        return int(self._session is not None)

    def arenas(self) -> StoreArenas:
        """Returns the arenas of the attached store; raises as `StoreLink.arenas` does."""
        return self._link.arenas()

    def drain(self) -> None:
        """Ends the session, and opens no more."""
        self._draining = True
        if self._session is not None:
            self._session.outbox.end(_shutting_down())

    async def open(self) -> OpenSession:
        """Opens a session; the caller closes it.

        Raises:
            ResourceExhausted: another router has a session, or writes of an ended session are still running.
            Unavailable: the decoder is draining, or there is no store at the moment.
            StoreMismatch: the expert store was started on another store.
        """
        if not self._vacant.is_set() and self._ending:
            try:
                await asyncio.wait_for(self._vacant.wait(), SUCCESSION_TIMEOUT_S)
            except TimeoutError:
                raise ResourceExhausted("the writes of an ended session are still running on this decoder") from None
        if not self._vacant.is_set():
            raise ResourceExhausted(
                "another router has a session on this decoder", next_step="stop that router, or start another decoder"
            )
        self._vacant.clear()
        opening = asyncio.ensure_future(self._open())
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._unwanted)
            raise

    async def close(self, session: OpenSession) -> None:
        """Ends a session; the ending goes on even if the caller is cancelled."""
        await asyncio.shield(asyncio.ensure_future(self._close(session)))

    async def _open(self) -> OpenSession:
        try:
            if self._draining:
                raise _shutting_down()
            arenas = self._link.arenas()
            outbox = Outbox()
            store = await StoreSession.open(self._store_target, partial(self._store_reports, outbox))
            holder = f"session {next(self._numbers)}"
            domain = RouterSession(holder, self._owner, store, arenas, outbox)
            tensors = self._owner.tensors
            first_tensor = 0 if tensors is None else tensors.slots.first_generation
            first = store.first_generations._replace(tensor=first_tensor)
            self._session = OpenSession(domain, store, outbox, first)
        except BaseException:
            self._vacant.set()
            raise
        return self._session

    async def _close(self, session: OpenSession) -> None:
        self._ending = True
        session.domain.end(Unavailable("the session has ended"))
        while not session.domain.idle:
            self._progress.clear()
            await self._progress.wait()
        try:
            await session.store.close()
        finally:
            self._session = None
            self._ending = False
            self._vacant.set()

    def _recover_reported(self, event: JobEvent[RecoverJob]) -> None:
        if event.ended:
            self._metrics.recover_ended(event.job)
        assert self._session is not None  # a session is not closed before its recoveries have ended
        self._session.domain.recover_reported(event)
        self._progress.set()

    def _unwanted(self, opening: asyncio.Future[OpenSession]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._tidying = asyncio.ensure_future(self._close(opening.result()))

    def _store_reports(self, outbox: Outbox, event: Completed | SessionLost) -> None:
        if isinstance(event, SessionLost):
            outbox.end(Unavailable(f"lost the expert store: {event.error.message}"))
        elif self._session is not None and self._session.outbox is outbox:
            self._session.domain.read_reported(event)


def _shutting_down() -> Unavailable:
    return Unavailable("the decoder is shutting down")
