"""Passes events from any thread to the event loop, many events for one wake-up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

_LOG = structlog.get_logger(__name__)
_Event = TypeVar("_Event")


class LoopQueue(Generic[_Event]):
    """Passes events from threads to a function on the event loop, in order.

    Waking the loop costs a system call and a switch of threads. So a wake-up that is under way serves all events that
    are posted before the loop wakes.

    Thread: `post` from any; `handle` runs on the loop. Its exceptions are logged and do not hold up other events.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, handle: Callable[[_Event], None]) -> None:
        self._loop = loop
        self._handle = handle
        self._events: deque[_Event] = deque()
        self._waking = False

    def post(self, event: _Event) -> None:
        """Queues an event and wakes the loop unless a wake-up is under way; two wake-ups at once do no harm."""
        self._events.append(event)
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._waking = False  # before the events are taken: a later post wakes the loop again
        while self._events:
            event = self._events.popleft()
            try:
                self._handle(event)
            except Exception:
                _LOG.exception("event_unhandled", event_type=type(event).__name__)
