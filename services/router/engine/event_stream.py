"""Hands the events of one call from the model thread to the client's stream, without blocking the model thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from zipmoe.services.router.engine.request import Event, RequestProgress

MOST_UNREAD = 64
"""Number of unread events at which the client's request pauses."""


class EventStream:
    """The events of one call, with the numbers of the answers that they belong to.

    Of progress only the latest is kept, so that a slow reader neither collects it nor pauses the request by it.

    Thread: `emit` and `unread` from any, `next` on the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, read: Callable[[], None]) -> None:
        """Makes an empty stream.

        Args:
            loop: the event loop that reads the stream.
            read: callback, called when the client has read enough for a paused request to go on.
        """
        self._loop = loop
        self._read = read
        self._events: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()
        """Events in order; None stands for `_progress`."""
        self._lock = threading.Lock()
        self._progress: RequestProgress | None = None
        self._count = 0

    def emit(self, event: Event, choice: int = 0) -> None:
        """Adds an event of an answer. A progress takes the place of one that is unread."""
        queued: Event | None = event
        with self._lock:
            if isinstance(event, RequestProgress):
                queued, replaces, self._progress = None, self._progress is not None, event
                if replaces:
                    return
            else:
                self._count += 1
        self._loop.call_soon_threadsafe(self._events.put_nowait, (choice, queued))

    def unread(self) -> bool:
        """Tells whether the client has left `MOST_UNREAD` or more events unread, so that the request should pause."""
        return self._count >= MOST_UNREAD

    async def next(self) -> tuple[int, Event]:
        """Waits for the next event, and returns it behind the number of its answer."""
        choice, event = await self._events.get()
        with self._lock:
            if event is None:
                event, self._progress = self._progress, None
                assert event is not None, "a place in the queue has a progress"
                return choice, event
            self._count -= 1
            goes_on = self._count == MOST_UNREAD - 1
        if goes_on:
            self._read()
        return choice, event
