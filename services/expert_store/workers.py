"""The I/O channel: threads that read experts request by request, each thread with one request at the disk.

    submit(job)         event loop            jobs queue up by urgency, then first in, first out
      -> requests       one token each        a thread takes the next request of the first job with one left
      -> read, check    thread of `io`        the thread that reads the last byte of a chunk checks the chunk
      -> report         the same thread       once, when the chunks of the first tensor are valid before all others are
      -> report         the last thread       once nothing of the job is in flight, with or without an error

The queue depth at the disk is the number of threads. While the last requests of a job are under way, the first requests
of the next job are already issued. So the disk never waits for the end of an expert. A request of a prefetch is taken
only when no needed read has a request left. A needed read overtakes a prefetch that has begun, at the prefetch's next
request. A job with a deadline that has passed before its turn ends without a request.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Executor, Future
from queue import SimpleQueue

import structlog

from zipmoe.errors import Cancelled, DeadlineExceeded, InternalError, Unavailable, ZipMoeError
from zipmoe.residency.pools import Urgency
from zipmoe.services.expert_store.busy_clock import BusyClock
from zipmoe.services.expert_store.job import ReadEvent, ReadJob
from zipmoe.store.format.layout import ChunkSpan
from zipmoe.store.read.reader import ReadRequest, StoreReader

_LOG = structlog.get_logger(__name__)


class ReadChannel:
    """Carries out jobs in a fixed number of threads, the most urgent job first.

    `busy` measures the time during which at least one request is at the disk.

    Thread: safe from any. `report` is called from the thread that advanced the job, in order, and must not block.
    """

    def __init__(self, reader: StoreReader, executor: Executor, thread_count: int, report: Callable[[ReadEvent], None]):
        self.busy = BusyClock()
        self._reader = reader
        self._executor = executor
        self._thread_count = thread_count
        self._report = report
        self._lock = threading.Lock()
        # Jobs with a request left to issue, most urgent queue first.
        self._queues: dict[Urgency, deque[ReadJob]] = {urgency: deque() for urgency in sorted(Urgency)}
        self._open_count = 0  # jobs that have not ended
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # True: a request may be ready; False: a thread shall end

    @property
    def open_count(self) -> int:
        """Number of reads that have been submitted and have not ended."""
        return self._open_count

    def start(self) -> None:
        """Occupies the executor's threads."""
        for _ in range(self._thread_count):
            self._executor.submit(self._run).add_done_callback(_tell)

    def stop(self) -> None:
        """Ends the threads, each after its current request. All jobs should have ended or been abandoned before."""
        for _ in range(self._thread_count):
            self._tokens.put(False)

    def submit(self, job: ReadJob) -> None:
        """Queues a job behind all earlier jobs of the same urgency."""
        with self._lock:
            self._queues[job.read.urgency].append(job)
            self._open_count += 1
        for _ in range(job.request_count):
            self._tokens.put(True)

    def cancel(self, holder: str, operation_ids: Collection[int]) -> None:
        """Drops the named reads of a session that have not begun; reads that have begun go on."""
        self._give_up(
            Cancelled("the read was called off before it began"),
            lambda job: job.holder == holder and not job.begun and job.read.operation_id in operation_ids,
        )

    def abandon(self, holder: str) -> None:
        """Gives up all reads of a session. Each read ends with its last request in flight."""
        self._give_up(Unavailable(f"the session {holder} has ended"), lambda job: job.holder == holder)

    def _give_up(self, error: ZipMoeError, is_meant: Callable[[ReadJob], bool]) -> None:
        over: list[ReadJob] = []
        with self._lock:
            for queue in self._queues.values():
                given_up = [job for job in queue if is_meant(job)]
                for job in given_up:
                    queue.remove(job)
                    job.stop(error)
                over += [job for job in given_up if job.ended]
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
            queue = next((queue for queue in self._queues.values() if queue), None)
            if queue is None:
                return None  # the token's job was stopped meanwhile
            job, now_s = queue[0], time.monotonic()
            if job.begun or now_s < job.begin_by_s:
                job.started_s = job.started_s or now_s
                request = job.take()
                if job.issued:
                    queue.popleft()
                return job, request
            queue.popleft()
            job.stop(DeadlineExceeded("the deadline of the read had passed before it began"))
            self._open_count -= 1
        self._end(job)
        return None  # the job's other tokens find no request, or a request of the next job

    def _serve(self, job: ReadJob, request: ReadRequest) -> None:
        error: ZipMoeError | None = None
        complete: list[ChunkSpan] = []
        try:
            with self.busy:
                self._reader.read_request(request, job.e_slot, job.sm_slot)
            with self._lock:
                complete = job.landed(request)
            for chunk in complete:
                job.check(chunk)
        except ZipMoeError as failure:
            error = failure.without_frames()  # the frames hold slices of the slots
        except Exception:
            _LOG.exception("read_failed", key=str(job.read.key))
            error = InternalError(f"reading {job.read.key} failed, see the log of the expert store")
        with self._lock:
            queued = not job.issued
            job.settle(error)
            if queued and job.issued:
                self._queues[job.read.urgency].remove(job)
            over = job.ended
            self._open_count -= over
            if error is None and job.checked(complete):
                self._report(ReadEvent(job, ended=False))  # under the lock, so that no thread reports the end before
        if over:
            self._end(job)

    def _end(self, job: ReadJob) -> None:
        job.ended_s = time.monotonic()
        job.let_go()
        self._report(ReadEvent(job, ended=True))


def _tell(thread: Future[None]) -> None:
    if (failure := thread.exception()) is not None:
        _LOG.critical("io_thread_died", exc_info=failure)
