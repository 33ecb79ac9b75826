"""The task pool: threads that carry out jobs unit by unit, so that all threads can share a job.

    make_ready(job)      event loop        once the units of the first tensor, or all of them, can be worked on
      -> units           one token each    a thread takes the next unit of the most urgent job with one left
      -> work, checks    the same thread   the thread that completes a part of the job checks the part
      -> report          the same thread   once, when the first tensor is complete before the rest is
      -> report          the last thread   once nothing of the job is under way, with or without an error

While the last units of a job are under way, the first units of the next job are already taken. A job that becomes ready
late overtakes less urgent jobs at the next unit. A job with a deadline that has passed before its turn ends without a
unit.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, Generic

import structlog

from zipmoe.errors import DeadlineExceeded, InternalError, ZipMoeError
from zipmoe.process.job import AnyJob, JobEvent

_LOG = structlog.get_logger(__name__)


class TaskPool(Generic[AnyJob]):
    """Carries out jobs in a fixed number of threads, the job with the smallest rank first.

    Thread: safe from any. `report` is called from the thread that advanced the job, in order, and must not block.
    """

    def __init__(
        self,
        work: Callable[[AnyJob, Any], None],
        executor: Executor,
        thread_count: int,
        report: Callable[[JobEvent[AnyJob]], None],
    ) -> None:
        """Makes a pool; `start` occupies the threads.

        Args:
            work: does a unit of a job; any number at once, on different units.
            executor: has `thread_count` threads.
            thread_count: units that are under way at once.
            report: see the class.
        """
        self.thread_count = thread_count
        self._work = work
        self._executor = executor
        self._report = report
        self._lock = threading.Lock()
        self._queue: list[tuple[tuple[int, int], AnyJob]] = []  # a heap; jobs with a unit ready to take
        self._open: dict[AnyJob, None] = {}  # jobs that have not ended, in the order of their beginning
        self._busy_count = 0
        self._busy_s = 0.0
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # True: a unit may be ready; False: a thread shall end

    @property
    def open_count(self) -> int:
        """Number of jobs that have become ready and have not ended."""
        return len(self._open)

    @property
    def busy_count(self) -> int:
        """Number of threads that are working right now."""
        return self._busy_count

    @property
    def busy_s(self) -> float:
        """Seconds that all threads together have spent on finished units."""
        return self._busy_s

    def start(self) -> None:
        """Occupies the executor's threads."""
        for _ in range(self.thread_count):
            self._executor.submit(self._run).add_done_callback(_tell)

    def stop(self) -> None:
        """Ends the threads, each after its current unit. All jobs should have ended or been given up before."""
        for _ in range(self.thread_count):
            self._tokens.put(False)

    def make_ready(self, job: AnyJob, *, first_tensor_only: bool = False) -> None:
        """Lets threads take a job's units: all, or only the first tensor's. A second call adds the others.

        A job that has failed meanwhile is left unchanged.
        """
        with self._lock:
            queued = not job.taken
            count = job.make_ready(first_tensor_only=first_tensor_only)
            if count and not queued:
                heapq.heappush(self._queue, (job.rank, job))
            if count:
                self._open[job] = None
        for _ in range(count):
            self._tokens.put(True)

    def give_up(self, error: ZipMoeError, is_meant: Callable[[AnyJob], bool]) -> None:
        """Fails the open jobs that are meant. Each ends with its last unit under way."""
        with self._lock:
            meant = [job for job in self._open if is_meant(job)]
            for job in meant:
                self._stop(job, error)
            over = [job for job in meant if self._close_if_ended(job)]
        for job in over:
            self._end(job)

    def _run(self) -> None:
        while self._tokens.get():
            taken = self._take()
            if taken is not None:
                self._do(*taken)

    def _take(self) -> tuple[AnyJob, Any] | None:
        with self._lock:
            if not self._queue:
                return None  # the token's job was stopped meanwhile
            job, now_s = self._queue[0][1], time.monotonic()
            if job.started_s or now_s < job.begin_by_s:
                job.started_s = job.started_s or now_s
                unit = job.take()
                if job.taken:
                    heapq.heappop(self._queue)
                self._busy_count += 1
                return job, unit
            self._stop(job, DeadlineExceeded(f"the deadline had passed before {job.title} began"))
            self._close_if_ended(job)
        self._end(job)
        return None  # the job's other tokens find no unit, or a unit of the next job

    def _do(self, job: AnyJob, unit: Any) -> None:
        begin_s = time.monotonic()
        error: ZipMoeError | None = None
        complete: Sequence[Any] = ()
        try:
            self._work(job, unit)
            with self._lock:
                complete = job.done(unit)
            for part in complete:
                job.check(part)
        except ZipMoeError as failure:
            error = failure.without_frames()  # the frames hold slices of the slots
        except Exception:
            _LOG.exception("job_failed", job=job.title)
            error = InternalError(f"{job.title} failed, see the log of the process that was to do it")
        with self._lock:
            self._busy_count -= 1
            self._busy_s += time.monotonic() - begin_s
            if error is not None:
                self._stop(job, error)
            job.settle()
            over = self._close_if_ended(job)
            if error is None and job.checked(complete):
                self._report(JobEvent(job, ended=False))  # under the lock: no thread reports the end before
        if over:
            self._end(job)

    def _stop(self, job: AnyJob, error: ZipMoeError) -> None:
        if not job.taken:
            self._queue = [entry for entry in self._queue if entry[1] is not job]
            heapq.heapify(self._queue)
        job.stop(error)

    def _close_if_ended(self, job: AnyJob) -> bool:
        if job.ended:
            self._open.pop(job, None)
        return job.ended

    def _end(self, job: AnyJob) -> None:
        job.ended_s = time.monotonic()
        job.let_go()
        self._report(JobEvent(job, ended=True))


def _tell(thread: Future[None]) -> None:
    if (failure := thread.exception()) is not None:
        _LOG.critical("pool_thread_died", exc_info=failure)
