"""The worker pool: recovers tensors, one E-chunk at a time, so that all workers can share one expert.

    submit(job)          event loop        once the chunks are in their slot
      -> E-chunks        one token each    a worker takes the next E-chunk of the most urgent job that has one left
      -> codec.recover   thread of `recover`
      -> ended(job)      the last worker   once nothing of the job is running, whatever the outcome

A job that becomes ready late overtakes the less urgent ones at the next E-chunk.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue

import structlog

from services.decoder.job import RecoverJob
from services.decoder.plan import RecoverUnit
from zipmoe.codec.base import Codec
from zipmoe.errors import InternalError, Unavailable, ZipMoeError

_log = structlog.get_logger()


class WorkerPool:
    """Recovers jobs with as many threads as there are workers, largest urgency first.

    Thread: safe from any. `ended` is called from the thread that ended the job and must not block.
    """

    def __init__(self, codec: Codec, executor: Executor, worker_count: int, ended: Callable[[RecoverJob], None]):
        self.worker_count = worker_count
        self._codec = codec
        self._executor = executor
        self._report = ended
        self._lock = threading.Lock()
        self._queue: list[tuple[int, int, RecoverJob]] = []  # a heap; jobs with an E-chunk left to take
        self._submitted = 0
        self._open_count = 0  # jobs that have not ended
        self._busy_count = 0
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # True: an E-chunk may be there; False: a worker shall end

    @property
    def open_count(self) -> int:
        """Recoveries that have been submitted and have not ended."""
        return self._open_count

    @property
    def busy_count(self) -> int:
        """Workers that are recovering right now."""
        return self._busy_count

    def start(self) -> None:
        """Occupies the executor's threads."""
        for _ in range(self.worker_count):
            self._executor.submit(self._run).add_done_callback(_tell)

    def stop(self) -> None:
        """Lets the workers end, each after the E-chunk it is at. Jobs should have ended or been abandoned before."""
        for _ in range(self.worker_count):
            self._tokens.put(False)

    def submit(self, job: RecoverJob) -> None:
        """Queues a job by its urgency."""
        with self._lock:
            heapq.heappush(self._queue, (job.rank, self._submitted, job))
            self._submitted += 1
            self._open_count += 1
        for _ in range(job.unit_count):
            self._tokens.put(True)

    def abandon(self) -> None:
        """Gives up everything; each job ends as soon as its last running E-chunk does."""
        gone = Unavailable("the session has ended")
        with self._lock:
            given_up = [job for _, _, job in self._queue]
            self._queue.clear()
            for job in given_up:
                job.stop(gone)
            over = [job for job in given_up if job.ended]
            self._open_count -= len(over)
        for job in over:
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
            job = self._queue[0][2]
            if job.started_s == 0.0:
                job.started_s = time.monotonic()
            unit = job.take()
            if job.taken:
                heapq.heappop(self._queue)
            self._busy_count += 1
            return job, unit

    def _recover(self, job: RecoverJob, unit: RecoverUnit) -> None:
        error: ZipMoeError | None = None
        try:
            job.recover(self._codec, unit)
            with self._lock:
                complete = job.recovered(unit)
            if complete:
                job.check(unit.tensor)
        except ZipMoeError as failure:
            error = failure
        except Exception:
            _log.exception("recovery failed for an unforeseen reason", key=str(job.fetch.key))
            error = InternalError(f"recovering {job.fetch.key} failed, see the log of the decoder")
        with self._lock:
            self._busy_count -= 1
            queued = not job.taken
            job.settle(error)
            if queued and job.taken:
                self._queue = [entry for entry in self._queue if entry[2] is not job]
                heapq.heapify(self._queue)
            over = job.ended
            self._open_count -= over
        if over:
            self._end(job)

    def _end(self, job: RecoverJob) -> None:
        job.ended_s = time.monotonic()
        job.let_go()
        self._report(job)


def _tell(thread: Future[None]) -> None:
    if (failure := thread.exception()) is not None:
        _log.critical("a recover worker has died", exc_info=failure)
