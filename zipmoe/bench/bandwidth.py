"""Measures the read bandwidth of memory, which bounds the speed of any kernel that reads weights once."""

from __future__ import annotations

import numpy as np

from zipmoe.bench.timed_threads import Seconds, TimedThreads

_ARRAY_BYTES = 8 << 20
_ARRAYS = 8  # together larger than the caches


class MemoryRead:
    """Reads 64 MiB with all threads, by sums of 64-bit integers. The additions cost nothing beside the reads."""

    def __init__(self, threads: TimedThreads) -> None:
        """Allocates and fills the memory to read."""
        self._threads = threads
        arrays = [np.ones(_ARRAY_BYTES // 8, np.int64) for _ in range(_ARRAYS)]
        self._jobs = [array.sum for array in arrays]
        self.nbytes = _ARRAYS * _ARRAY_BYTES

    def run(self) -> Seconds:
        """Reads the memory once and returns the time."""
        return self._threads.run(self._jobs)
