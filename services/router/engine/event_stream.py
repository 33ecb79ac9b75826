"""From the model thread to one client's stream, without either waiting for the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from zipmoe.services.router.engine.request import Event

MOST_UNREAD = 64
"""Events that a client may leave unread before its request pauses."""


class EventStream:
    """The events of one request. `emit` and `unread` may be called from any thread, `next` on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, read: Callable[[], None]) -> None:
        """Makes an empty stream.

        Args:
            loop: on which it is read.
            read: called when a request that has paused can go on.
        """
        self._loop = loop
        self._read = read
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._lock = threading.Lock()
        self._count = 0

    def emit(self, event: Event) -> None:
        """Adds an event."""
        with self._lock:
            self._count += 1
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def unread(self) -> bool:
        """Whether so many events have not been read that the request had better pause."""
        return self._count >= MOST_UNREAD

    async def next(self) -> Event:
        """Waits for the next event."""
        event = await self._events.get()
        with self._lock:
            self._count -= 1
            goes_on = self._count == MOST_UNREAD - 1
        if goes_on:
            self._read()
        return event
