"""From any thread onto the event loop, many events for one wake-up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

_LOG = structlog.get_logger(__name__)
_Event = TypeVar("_Event")


class LoopQueue(Generic[_Event]):
    """Hands events from threads to a function on the event loop, in order.

    Waking the loop costs a system call and a switch of threads, so a wake-up that is under way serves all events that
    are posted until it happens.

    Thread: `post` from any; `handle` runs on the loop. What it raises is logged and does not hold up other events.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, handle: Callable[[_Event], None]) -> None:
        self._loop = loop
        self._handle = handle
        self._events: deque[_Event] = deque()
        self._waking = False

    def post(self, event: _Event) -> None:
        """Queues an event. A thread that sees a wake-up under way leaves it at that; two at once do no harm."""
        self._events.append(event)
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._waking = False  # before the events are taken: what is posted from here on wakes the loop again
        while self._events:
            event = self._events.popleft()
            try:
                self._handle(event)
            except Exception:
                _LOG.exception("event_unhandled", event_type=type(event).__name__)
