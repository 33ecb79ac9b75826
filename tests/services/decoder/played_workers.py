"""The worker pool of a decoder, played by a test: an E-chunk is taken, and is recovered, when the test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from zipmoe.arena.tensor_form import TensorRoom
from zipmoe.errors import DeadlineExceeded, ZipMoeError
from zipmoe.kernels.linear import CascadePart
from zipmoe.process.job import JobEvent
from zipmoe.services.decoder.job import RecoverJob
from zipmoe.services.decoder.plan import RecoverUnit


class PlayedWorkers:
    """Does with the recoveries what `TaskPool` does, one step at a time.

    Attributes:
        open: the recoveries that have begun and have not ended.
        whole: the recoveries that may take all of their E-chunks.
        running: the E-chunks that are being recovered.
        events: reports that nobody has received.
        touched: bytes of the three slots that the last E-chunk was begun with: E, SM, tensor.
    """

    def __init__(self, is_late: Callable[[float], bool]) -> None:
        self.open: list[RecoverJob] = []
        self.whole: set[RecoverJob] = set()
        self.running: list[tuple[RecoverJob, RecoverUnit]] = []
        self.events: deque[JobEvent[RecoverJob]] = deque()
        self.touched = (0, 0, 0)
        self._is_late = is_late

    def make_ready(self, job: RecoverJob, *, first_tensor_only: bool) -> None:
        if not job.make_ready(first_tensor_only=first_tensor_only):
            return
        if job not in self.open:
            self.open.append(job)
        if not first_tensor_only:
            self.whole.add(job)

    def give_up(self, error: ZipMoeError, is_meant: Callable[[RecoverJob], bool]) -> None:
        for job in [each for each in self.open if is_meant(each)]:
            job.stop(error)
            self._end_if_over(job)

    def take(self, job: RecoverJob) -> bool:
        """Begins the next E-chunk of a recovery; a late one ends instead. Returns whether an E-chunk was begun."""
        if not job.started_s and self._is_late(job.begin_by_s):
            self.give_up(DeadlineExceeded("late"), lambda each: each is job)
            return False
        job.started_s = 1.0
        unit = job.take()
        self.running.append((job, unit))
        job.recover(unit)
        return True

    def recover(self, parts: Sequence[CascadePart], out: memoryview, room: TensorRoom) -> None:
        """Plays the form that is recovered to."""
        (part,) = parts
        with memoryview(part.e_chunk) as e_chunk, memoryview(part.sm) as sm, out:
            self.touched = e_chunk[0], sm[0], out[0]

    def weights(self, recovered: memoryview, room: TensorRoom) -> memoryview:
        """Plays the form; nothing is verified."""
        return recovered

    def settle(self, work: tuple[RecoverJob, RecoverUnit], error: ZipMoeError | None) -> None:
        """Ends an E-chunk."""
        self.running.remove(work)
        job, unit = work
        complete = job.done(unit) if error is None else []
        if error is not None:
            job.stop(error)
        job.settle()
        if job.checked(complete):
            self.events.append(JobEvent(job, ended=False))
        self._end_if_over(job)

    def _end_if_over(self, job: RecoverJob) -> None:
        if job.ended:
            self.open.remove(job)
            job.let_go()
            self.events.append(JobEvent(job, ended=True))
