"""Runs jobs on threads with a bounded number in flight, and yields the results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_WORKERS = 1024

Job = TypeVar("Job")
Buffers = TypeVar("Buffers")
Result = TypeVar("Result")


def run_in_order(
    jobs: Iterable[Job], work: Callable[[Job, Buffers], Result], buffer_sets: Sequence[Buffers], workers: int
) -> Generator[tuple[Job, Result], None, None]:
    """Runs `work(job, buffers)` for every job and yields the results in the order of the jobs.

    Args:
        jobs: taken one at a time, when a set of buffers is free.
        work: function that runs in a worker thread; may leave its result in its buffers.
        buffer_sets: sets of buffers. A set is busy from the start of its job until the caller asks for the next result
            after that of the job. So at most `len(buffer_sets)` jobs are in flight.
        workers: number of threads.

    Raises:
        Every error of `work`, in the turn of its job. Then, and when the generator is closed, jobs that have not begun
        are dropped, and running jobs are waited for.
    """
    free = deque(buffer_sets)
    in_flight: deque[tuple[Job, Buffers, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="store")
    todo = iter(jobs)
    try:
        while True:
            for job in todo:
                buffers = free.popleft()
                in_flight.append((job, buffers, pool.submit(work, job, buffers)))
                if not free:
                    break
            if not in_flight:
                return
            job, buffers, future = in_flight.popleft()
            yield job, future.result()
            free.append(buffers)
    finally:
        pool.shutdown(cancel_futures=True)
