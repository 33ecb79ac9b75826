"""Runs jobs on threads and measures wall time and processor time.

Machines are shared. Other work on the machine lengthens the wall time, but hardly the processor time. Figures therefore
use the processor time of the busiest thread, which equals the wall time on an idle machine if the jobs never wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from zipmoe.errors import InvalidRequest

if TYPE_CHECKING:
    from typing import Self

Job = Callable[[], object]

MOST_THREADS = 256


@dataclass(frozen=True)
class Seconds:
    """Wall time of a set of jobs, and processor time of the busiest thread."""

    wall_s: float
    busy_s: float


class TimedThreads:
    """A fixed number of threads that share jobs evenly. A single thread is the thread of the caller."""

    def __init__(self, thread_count: int) -> None:
        """Starts the threads.

        Raises:
            InvalidRequest: `thread_count` is less than 1 or more than `MOST_THREADS`.
        """
        if not 1 <= thread_count <= MOST_THREADS:
            raise InvalidRequest(f"threads have to be 1 to {MOST_THREADS}, not {thread_count}")
        self.thread_count = thread_count
        self._pool = ThreadPoolExecutor(thread_count, thread_name_prefix="bench") if thread_count > 1 else None

    def run(self, jobs: Sequence[Job]) -> Seconds:
        """Runs every job once, job i on thread i modulo the number of threads.

        Returns:
            Wall time and processor time. The processor time is that of the busiest thread, or of the process divided by
            the number of threads if that is more, because a job may start its own threads.
        """
        shares = [jobs[first :: self.thread_count] for first in range(self.thread_count)]
        wall_begin_s, process_begin_s = time.perf_counter(), time.process_time()
        busy_s = _run_share(jobs) if self._pool is None else max(self._pool.map(_run_share, shares))
        process_s = time.process_time() - process_begin_s
        return Seconds(time.perf_counter() - wall_begin_s, max(busy_s, process_s / self.thread_count))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _run_share(share: Sequence[Job]) -> float:
    begin_s = time.thread_time()
    for job in share:
        job()
    return time.thread_time() - begin_s
