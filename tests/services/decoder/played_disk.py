"""The I/O threads of a store, played by a test: a request is issued, and lands, when the test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from zipmoe.errors import DeadlineExceeded, ZipMoeError
from zipmoe.process.job import JobEvent
from zipmoe.services.expert_store.job import ReadJob


class PlayedDisk:
    """Does with the reads what `TaskPool` does, one step at a time.

    Attributes:
        open: the reads that have not ended.
        flying: the requests at the disk: a read and the tensor whose chunks are read.
        begun_well: the reads whose first tensor has arrived.
        events: reports that nobody has received.
    """

    def __init__(self, is_late: Callable[[float], bool]) -> None:
        self.open: list[ReadJob] = []
        self.flying: list[tuple[ReadJob, int]] = []
        self.begun_well: set[ReadJob] = set()
        self.events: deque[JobEvent[ReadJob]] = deque()
        self._is_late = is_late

    def make_ready(self, job: ReadJob) -> None:
        job.make_ready(first_tensor_only=False)
        self.open.append(job)

    def give_up(self, error: ZipMoeError, is_meant: Callable[[ReadJob], bool]) -> None:
        for job in [each for each in self.open if is_meant(each)]:
            self._stop(job, error)

    def issue(self, job: ReadJob) -> None:
        """Issues the next request of a read; a late one ends instead."""
        if not job.begun and self._is_late(job.begin_by_s):
            self._stop(job, DeadlineExceeded("late"))
        else:
            self.flying.append((job, job.take()))  # type: ignore[arg-type]

    def land(self, flight: tuple[ReadJob, int], error: ZipMoeError | None) -> None:
        self.flying.remove(flight)
        job, tensor = flight
        if error is not None:
            job.stop(error)
        job.settle()
        if tensor == 0 and job.error is None:
            self.begun_well.add(job)
            if not job.ended:
                self.events.append(JobEvent(job, ended=False))
        if job.ended:
            self._end(job)

    def end(self, job: ReadJob, error: ZipMoeError | None) -> None:
        """Issues what is left of a read and lands it, the last request with an error or none."""
        while not job.taken:
            self.issue(job)
        while flights := [flight for flight in self.flying if flight[0] is job]:
            self.land(flights[0], error if len(flights) == 1 else None)

    def _stop(self, job: ReadJob, error: ZipMoeError) -> None:
        job.stop(error)
        if job.ended:
            self._end(job)

    def _end(self, job: ReadJob) -> None:
        self.open.remove(job)
        job.let_go()
        self.events.append(JobEvent(job, ended=True))
