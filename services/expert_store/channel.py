"""The I/O channel: reads of experts cut into requests, a bounded number of them at the disk at any time.

    submit(job)         event loop            jobs queue up in order of urgency, first in, first out
      -> requests       one token each        a thread takes the next request of the oldest job that has one left
      -> read, check    thread of `io`        a chunk is checked by the thread whose request brought its last byte
      -> ended(job)     the last thread       once nothing of the job is in flight, whatever the outcome

The queue depth at the disk is the number of threads. While a job's last requests are under way the next job's first
ones are already issued, so the disk never waits for one expert to end.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue

import structlog

from services.expert_store.job import ReadJob
from zipmoe.errors import InternalError, Unavailable, ZipMoeError
from zipmoe.store.reader import ReadRequest, StoreReader

_log = structlog.get_logger()


class ReadChannel:
    """Reads jobs with as many requests in flight as it has threads.

    Thread: safe from any. `ended` is called from the thread that ended the job and must not block.
    """

    def __init__(self, reader: StoreReader, executor: Executor, thread_count: int, ended: Callable[[ReadJob], None]):
        self._reader = reader
        self._executor = executor
        self._thread_count = thread_count
        self._report = ended
        self._lock = threading.Lock()
        self._queue: deque[ReadJob] = deque()  # jobs with a request left to issue
        self._open_count = 0  # jobs that have not ended
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # True: a request may be there; False: a thread shall end

    @property
    def open_count(self) -> int:
        """Reads that have been submitted and have not ended."""
        return self._open_count

    def start(self) -> None:
        """Occupies the executor's threads."""
        for _ in range(self._thread_count):
            self._executor.submit(self._run).add_done_callback(_tell)

    def stop(self) -> None:
        """Lets the threads end, each after the request it is at. Jobs should have ended or been abandoned before."""
        for _ in range(self._thread_count):
            self._tokens.put(False)

    def submit(self, job: ReadJob) -> None:
        """Queues a job behind those that came before."""
        with self._lock:
            self._queue.append(job)
            self._open_count += 1
        for _ in range(job.request_count):
            self._tokens.put(True)

    def abandon(self, holder: str) -> None:
        """Gives up all reads of a session; each ends as soon as its last request in flight does."""
        gone = Unavailable(f"the session {holder} has ended")
        with self._lock:
            given_up = [job for job in self._queue if job.holder == holder]
            self._queue = deque(job for job in self._queue if job.holder != holder)
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
                self._serve(*work)

    def _take(self) -> tuple[ReadJob, ReadRequest] | None:
        with self._lock:
            if not self._queue:
                return None  # the token's job was stopped meanwhile
            job = self._queue[0]
            if job.started_s == 0.0:
                job.started_s = time.monotonic()
            request = job.take()
            if job.issued:
                self._queue.popleft()
            return job, request

    def _serve(self, job: ReadJob, request: ReadRequest) -> None:
        error: ZipMoeError | None = None
        try:
            self._reader.read_request(request, job.slot)
            with self._lock:
                complete = job.landed(request)
            for chunk in complete:
                job.check(chunk)
        except ZipMoeError as failure:
            error = failure
        except Exception:
            _log.exception("read failed for an unforeseen reason", key=str(job.read.key))
            error = InternalError(f"reading {job.read.key} failed, see the log of the expert store")
        with self._lock:
            queued = not job.issued
            job.settle(error)
            if queued and job.issued:
                self._queue.remove(job)
            over = job.ended
            self._open_count -= over
        if over:
            self._end(job)

    def _end(self, job: ReadJob) -> None:
        job.ended_s = time.monotonic()
        job.let_go()
        self._report(job)


def _tell(thread: Future[None]) -> None:
    if (failure := thread.exception()) is not None:
        _log.critical("a thread of the I/O channel has died", exc_info=failure)
