"""The I/O channel of a store, played by a test: a request is issued, and lands, when the test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from zipmoe.errors import Cancelled, DeadlineExceeded, Unavailable, ZipMoeError
from zipmoe.services.expert_store.job import ReadEvent, ReadJob


class PlayedDisk:
    """Does with the reads what `ReadChannel` does, one step at a time.

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
        self.events: deque[ReadEvent] = deque()
        self._is_late = is_late

    def submit(self, job: ReadJob) -> None:
        self.open.append(job)

    def cancel(self, holder: str, operation_ids: Collection[int]) -> None:
        for job in list(self.open):
            if job.holder == holder and not job.begun and job.read.operation_id in operation_ids:
                self._stop(job, Cancelled("called off"))

    def abandon(self, holder: str) -> None:
        for job in list(self.open):
            if job.holder == holder and not job.issued:
                self._stop(job, Unavailable("the session has ended"))

    def issue(self, job: ReadJob) -> None:
        """Issues the next request of a read; a late one ends instead."""
        if not job.begun and self._is_late(job.begin_by_s):
            self._stop(job, DeadlineExceeded("late"))
        else:
            self.flying.append((job, job.take()))  # type: ignore[arg-type]

    def land(self, flight: tuple[ReadJob, int], error: ZipMoeError | None) -> None:
        self.flying.remove(flight)
        job, tensor = flight
        job.settle(error)
        if tensor == 0 and job.error is None:
            self.begun_well.add(job)
            if not job.ended:
                self.events.append(ReadEvent(job, ended=False))
        if job.ended:
            self._end(job)

    def end(self, job: ReadJob, error: ZipMoeError | None) -> None:
        """Issues what is left of a read and lands it, the last request with an error or none."""
        while not job.issued:
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
        self.events.append(ReadEvent(job, ended=True))
