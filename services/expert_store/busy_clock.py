"""Measures the total time during which at least one of several activities is under way."""

from __future__ import annotations

import threading
import time


class BusyClock:
    """Sums the time during which at least one of several overlapping activities is under way.

    Thread: safe from any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._since_s = 0.0
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Busy seconds so far, up to now if an activity is under way."""
        with self._lock:
            return self._seconds + (time.monotonic() - self._since_s if self._count else 0.0)

    def __enter__(self) -> None:
        with self._lock:
            if self._count == 0:
                self._since_s = time.monotonic()
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                self._seconds += time.monotonic() - self._since_s
