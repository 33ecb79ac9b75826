"""A queue whose reader is woken by signals without fail.

A thread that blocks in `queue.get` sleeps through a signal that arrives between Python's last look at its pending
signals and the system call: the handler runs only when something else wakes the thread. Here signals write into the
pipe that is waited on.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections import deque
from typing import Generic, TypeVar

Event = TypeVar("Event")


class SignalQueue(Generic[Event]):
    """Events from threads and signal handlers, for the main thread.

    While it is open, signals of this process wake it (`signal.set_wakeup_fd`).
    """

    def __init__(self) -> None:
        """Opens the inbox; in the main thread."""
        self._events: deque[Event] = deque()
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)

    def put(self, event: Event) -> None:
        """Adds an event. Thread: any; signal handlers as well."""
        self._events.append(event)
        with contextlib.suppress(BlockingIOError):  # full: the reader will wake up anyway
            os.write(self._writing, b"\0")

    def get(self, timeout_s: float | None) -> Event | None:
        """Takes the oldest event, waiting for one if there is none.

        Args:
            timeout_s: how long to wait; None waits for ever.

        Returns:
            The event, or None if none came in time. Whatever a signal handler raises comes through.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._events:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._reading], [], [], left_s)[0]:
                return None
            with contextlib.suppress(BlockingIOError):
                os.read(self._reading, 4096)
        return self._events.popleft()

    def close(self) -> None:
        """Closes the inbox; nobody may put anything any more."""
        signal.set_wakeup_fd(self._before)
        os.close(self._reading)
        os.close(self._writing)
