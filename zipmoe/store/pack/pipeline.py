"""Runs jobs on threads with a bounded number in flight, and yields the results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_WORKERS = 1024

Job = TypeVar("Job")
Bench = TypeVar("Bench")
Result = TypeVar("Result")


def run_in_order(
    jobs: Iterable[Job], work: Callable[[Job, Bench], Result], benches: Sequence[Bench], workers: int
) -> Generator[tuple[Job, Result], None, None]:
    """Runs `work(job, bench)` for every job and yields the results in the order of the jobs.

    Args:
        jobs: taken one at a time, when a bench is free.
        work: function that runs in a worker thread; may leave its result in the buffers of the bench.
        benches: sets of buffers. A bench is busy from the start of its job until the caller asks for the next result
            after that of the job. So at most `len(benches)` jobs are in flight.
        workers: number of threads.

    Raises:
        Every error of `work`, in the turn of its job. Then, and when the generator is closed, jobs that have not begun
        are dropped, and running jobs are waited for.
    """
    free = deque(benches)
    in_flight: deque[tuple[Job, Bench, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="store")
    todo = iter(jobs)
    try:
        while True:
            for job in todo:
                bench = free.popleft()
                in_flight.append((job, bench, pool.submit(work, job, bench)))
                if not free:
                    break
            if not in_flight:
                return
            job, bench, future = in_flight.popleft()
            yield job, future.result()
            free.append(bench)
    finally:
        pool.shutdown(cancel_futures=True)
