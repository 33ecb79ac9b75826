"""Who has the decoder's one session, and the order in which a session's ends come: workers, store, next router."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from itertools import count

from zipmoe.errors import ResourceExhausted, Unavailable
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.services.decoder.job import RecoverEvent
from zipmoe.services.decoder.metrics import DecoderMetrics
from zipmoe.services.decoder.outbox import Outbox
from zipmoe.services.decoder.session import RouterSession, TensorOwner
from zipmoe.services.decoder.store_link import StoreArenas, StoreLink
from zipmoe.services.expert_store.client import LoopQueue, ReadResult, SessionLost, StoreSession

SUCCESSION_TIMEOUT_S = 5.0
"""Longest wait of a new session until the running writes of its predecessor have ended."""


@dataclass(frozen=True)
class OpenSession:
    """The session of one router, and with it the session at the store.

    `first_generations` are the smallest that it may use on each arena; 0 for tensors where there is no such arena.
    """

    domain: RouterSession
    store: StoreSession
    outbox: Outbox
    first_generations: PoolSizes


class SingleSession:
    """Opens one session at a time, passes it what workers and store report, and closes it.

    A session that ends first lets its running recoveries end, since they read chunk slots and write tensor slots; then
    it closes the session at the store, which frees the chunk slots; only then the next one is opened.

    `recovered` is where workers leave what they have to report of recoveries.

    Thread: the event loop's only, but for `recovered.post`.
    """

    def __init__(self, owner: TensorOwner, link: StoreLink, store_target: str, metrics: DecoderMetrics) -> None:
        self._owner = owner
        self._link = link
        self._store_target = store_target
        self._metrics = metrics
        self.recovered: LoopQueue[RecoverEvent] = LoopQueue(asyncio.get_running_loop(), self._recover_reported)
        self._numbers = count(1)
        self._session: OpenSession | None = None
        self._vacant = asyncio.Event()  # cleared from before a session opens until all its slots are free
        self._vacant.set()
        self._ending = False
        self._progress = asyncio.Event()  # set whenever a recovery has ended
        self._draining = False
        self._tidying: asyncio.Future[None] | None = None  # closes a session whose opener has gone

    @property
    def session_count(self) -> int:
        """Sessions that are open: 0 or 1."""
        return int(self._session is not None)

    def arenas(self) -> StoreArenas:
        """The arenas of the store that is attached; raises as `StoreLink.arenas` does."""
        return self._link.arenas()

    def drain(self) -> None:
        """Ends the session, and opens no more."""
        self._draining = True
        if self._session is not None:
            self._session.outbox.end(_shutting_down())

    async def open(self) -> OpenSession:
        """Opens a session; the caller closes it.

        Raises:
            ResourceExhausted: another router has a session, or one that has gone still has writes running.
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
        """Ends a session; goes on to its end even if the caller is cancelled."""
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
            first = PoolSizes(store.first_e_generation, store.first_sm_generation, first_tensor)
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

    def _recover_reported(self, event: RecoverEvent) -> None:
        if event.ended:
            self._metrics.recover_ended(event.job)
        assert self._session is not None  # it is not closed before its recoveries have ended
        self._session.domain.recover_reported(event)
        self._progress.set()

    def _unwanted(self, opening: asyncio.Future[OpenSession]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._tidying = asyncio.ensure_future(self._close(opening.result()))

    def _store_reports(self, outbox: Outbox, event: ReadResult | SessionLost) -> None:
        if isinstance(event, SessionLost):
            outbox.end(Unavailable(f"lost the expert store: {event.error.message}"))
        elif self._session is not None and self._session.outbox is outbox:
            self._session.domain.read_reported(event)


def _shutting_down() -> Unavailable:
    return Unavailable("the decoder is shutting down")
