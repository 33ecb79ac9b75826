"""Runs jobs on some threads and takes the time of it, by the clock on the wall and by that of the processor.

Machines are shared: what else runs there lengthens the wall's time, and hardly the processor's. So figures are by the
processor time of the busiest thread, which is what the wall would show on an idle machine if the jobs never wait.
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
    """What a set of jobs took."""

    wall_s: float
    busy_s: float


class TimedThreads:
    """A fixed number of threads that share jobs evenly; the caller's own where one is enough."""

    def __init__(self, thread_count: int) -> None:
        """Starts the threads.

        Raises:
            InvalidRequest: less than one thread, or more than `MOST_THREADS`.
        """
        if not 1 <= thread_count <= MOST_THREADS:
            raise InvalidRequest(f"threads have to be 1 to {MOST_THREADS}, not {thread_count}")
        self.thread_count = thread_count
        self._pool = ThreadPoolExecutor(thread_count, thread_name_prefix="bench") if thread_count > 1 else None

    def run(self, jobs: Sequence[Job]) -> Seconds:
        """Runs every job once, job i on thread i modulo the number of threads.

        Returns:
            The seconds; those of the processor are the busiest thread's, or the process's shared out among the threads
            where that is more: a job may have threads of its own.
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
