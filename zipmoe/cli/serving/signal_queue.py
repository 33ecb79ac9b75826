"""An event queue with a reader that every signal wakes.

A thread that blocks in `queue.get` can sleep through a signal. If the signal arrives between Python's last check for
pending signals and the system call, the handler runs only when another event wakes the thread. Here, signals write into
the pipe that the reader waits on.
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
    """A queue of events from threads and signal handlers to the main thread.

    While the queue is open, signals of this process wake its reader (`signal.set_wakeup_fd`).
    """

    def __init__(self) -> None:
        """Opens the queue. Thread: main."""
        self._events: deque[Event] = deque()
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)

    def put(self, event: Event) -> None:
        """Adds an event. Thread: any, and signal handlers."""
        self._events.append(event)
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes the reader as well
            os.write(self._writing, b"\0")

    def get(self, timeout_s: float | None) -> Event | None:
        """Takes the oldest event, and waits for an event if the queue is empty.

        Args:
            timeout_s: longest wait; None for no limit.

        Returns:
            The event, or None after the timeout. Exceptions of signal handlers propagate.
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
        """Closes the queue. No event may be put afterwards."""
        signal.set_wakeup_fd(self._before)
        os.close(self._reading)
        os.close(self._writing)
