"""The worker pool: threads that recover tensors E-chunk by E-chunk, so that all workers can share an expert.

    make_ready(job)      event loop        once the chunks of the first tensor, or all of them, are in their slots
      -> E-chunks        one token each    a worker takes the next E-chunk of the most urgent job with one left
      -> codec.recover   thread of `recover`
      -> report          the same worker   once, when the first tensor is recovered before the rest is
      -> report          the last worker   once nothing of the job is running, with or without an error

A job that becomes ready late overtakes less urgent jobs at the next E-chunk. A job with a deadline that has passed
before its turn ends without recovering an E-chunk.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue

import structlog

from zipmoe.codec.base import Codec
from zipmoe.errors import DeadlineExceeded, InternalError, ZipMoeError
from zipmoe.services.decoder.job import RecoverEvent, RecoverJob
from zipmoe.services.decoder.plan import RecoverUnit

_LOG = structlog.get_logger(__name__)


class WorkerPool:
    """Carries out jobs in a fixed number of threads, the job with the smallest rank first.

    Thread: safe from any. `report` is called from the thread that advanced the job, in order, and must not block.
    """

    def __init__(self, codec: Codec, executor: Executor, worker_count: int, report: Callable[[RecoverEvent], None]):
        self.worker_count = worker_count
        self._codec = codec
        self._executor = executor
        self._report = report
        self._lock = threading.Lock()
        self._queue: list[tuple[tuple[int, int], RecoverJob]] = []  # a heap; jobs with an E-chunk ready to take
        self._open: set[RecoverJob] = set()  # jobs that have not ended
        self._busy_count = 0
        self._busy_s = 0.0
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # True: an E-chunk may be ready; False: a worker shall end

    @property
    def open_count(self) -> int:
        """Number of recoveries that have begun and have not ended."""
        return len(self._open)

    @property
    def busy_count(self) -> int:
        """Number of workers that are recovering right now."""
        return self._busy_count

    @property
    def busy_s(self) -> float:
        """Seconds that all workers together have spent on finished E-chunks."""
        return self._busy_s

    def start(self) -> None:
        """Occupies the executor's threads."""
        for _ in range(self.worker_count):
            self._executor.submit(self._run).add_done_callback(_tell)

    def stop(self) -> None:
        """Ends the workers, each after its current E-chunk. All jobs should have ended or been given up before."""
        for _ in range(self.worker_count):
            self._tokens.put(False)

    def make_ready(self, job: RecoverJob, *, first_tensor_only: bool) -> None:
        """Lets workers take a job's E-chunks: all, or only the first tensor's. A second call adds the others.

        A job that has failed meanwhile is left unchanged.
        """
        with self._lock:
            queued = not job.taken
            count = job.make_ready(first_tensor_only=first_tensor_only)
            if count and not queued:
                heapq.heappush(self._queue, (job.rank, job))
            if count:
                self._open.add(job)
        for _ in range(count):
            self._tokens.put(True)

    def give_up(self, job: RecoverJob, error: ZipMoeError) -> None:
        """Fails a job that has begun, unless the job has ended. The job ends with its last running E-chunk."""
        with self._lock:
            if job not in self._open:
                return
            self._stop(job, error)
            over = self._close_if_ended(job)
        if over:
            self._end(job)

    def _run(self) -> None:
        while self._tokens.get():
            work = self._take()
            if work is not None:
                self._recover(*work)

    def _take(self) -> tuple[RecoverJob, RecoverUnit] | None:
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
            self._stop(job, DeadlineExceeded("the deadline of the recovery had passed before it began"))
            self._open.discard(job)
        self._end(job)
        return None  # the job's other tokens find no E-chunk, or an E-chunk of the next job

    def _recover(self, job: RecoverJob, unit: RecoverUnit) -> None:
        begin_s = time.monotonic()
        error: ZipMoeError | None = None
        complete = False
        try:
            job.recover(self._codec, unit)
            with self._lock:
                complete = job.recovered(unit)
            if complete:
                job.check(unit.tensor)
        except ZipMoeError as failure:
            error = failure.without_frames()  # the frames hold slices of the slots
        except Exception:
            _LOG.exception("recovery_failed", key=str(job.recovery.key))
            error = InternalError(f"recovering {job.recovery.key} failed, see the log of the decoder")
        with self._lock:
            self._busy_count -= 1
            self._busy_s += time.monotonic() - begin_s
            if error is not None:
                self._stop(job, error)
            job.settle()
            over = self._close_if_ended(job)
            if complete and job.error is None and job.only_first_recovered(unit):
                self._report(RecoverEvent(job, ended=False))  # under the lock: no worker reports the end before
        if over:
            self._end(job)

    def _stop(self, job: RecoverJob, error: ZipMoeError) -> None:
        if not job.taken:
            self._queue = [entry for entry in self._queue if entry[1] is not job]
            heapq.heapify(self._queue)
        job.stop(error)

    def _close_if_ended(self, job: RecoverJob) -> bool:
        if job.ended:
            self._open.discard(job)
        return job.ended

    def _end(self, job: RecoverJob) -> None:
        job.ended_s = time.monotonic()
        job.let_go()
        self._report(RecoverEvent(job, ended=True))


def _tell(thread: Future[None]) -> None:
    if (failure := thread.exception()) is not None:
        _LOG.critical("recover_worker_died", exc_info=failure)
