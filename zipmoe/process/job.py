"""Tracks the progress of one operation that several threads carry out: the units that are left and those under way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import count
from typing import Any, Generic, NamedTuple, TypeVar

from zipmoe.errors import ZipMoeError
from zipmoe.residency.pools import Read, Recover

Unit = TypeVar("Unit")
AnyJob = TypeVar("AnyJob", bound="PooledJob[Any]")
_NUMBERS = count(1)


class PooledJob(ABC, Generic[Unit]):
    """A read or recovery in a task pool.

    The units of the first tensor come first. They may be ready before the others.

    Attributes:
        operation: the operation: expert and slots.
        begin_by_s: deadline on the monotonic clock; the job does not begin from then on.
        rank: place in the order of jobs, by urgency, then by age; the smallest goes first.
        error: cause of the failure; None while there is none. The first error counts.
        started_s: time at which the first unit was taken, in seconds of the monotonic clock; 0 before.
        ended_s: time of the end, after the last check; 0 before.

    Thread: guarded by the pool's lock until the job has ended, then owned by the receiver of the report.
    """

    __slots__ = (
        "_first_count",
        "_next",
        "_ready",
        "_running",
        "_units",
        "begin_by_s",
        "ended_s",
        "error",
        "operation",
        "rank",
        "started_s",
    )

    def __init__(self, operation: Read | Recover, units: Sequence[Unit], first_count: int, begin_by_s: float) -> None:
        """Makes a job of which nothing is ready.

        Args:
            operation: the operation.
            units: parts of the work; those of the first tensor first.
            first_count: number of units of the first tensor.
            begin_by_s: see the class.
        """
        self.operation = operation
        self.begin_by_s = begin_by_s
        self.rank = (int(operation.urgency), next(_NUMBERS))
        self.error: ZipMoeError | None = None
        self.started_s = 0.0
        self.ended_s = 0.0
        self._units = units
        self._first_count = first_count
        self._ready = 0
        self._next = 0
        self._running = 0

    @property
    @abstractmethod
    def title(self) -> str:
        """What the job does, for messages."""

    @property
    def taken(self) -> bool:
        """Whether no unit is left to take at the moment."""
        return self._next == self._ready

    @property
    def ended(self) -> bool:
        """Whether no unit is left to take, now or later, and none is under way."""
        return self._next == len(self._units) and self._running == 0

    @property
    def work_s(self) -> float:
        """Seconds from the first unit to the end, once the job has ended; 0 if it never began."""
        return self.ended_s - self.started_s if self.started_s else 0.0

    def make_ready(self, *, first_tensor_only: bool) -> int:
        """Makes the units of the whole job or of the first tensor ready; returns the number of new ones."""
        if self.error is not None:
            return 0  # the job was stopped
        before = self._ready
        self._ready = self._first_count if first_tensor_only else len(self._units)
        return self._ready - before

    def take(self) -> Unit:
        """Hands out the next unit."""
        unit = self._units[self._next]
        self._next += 1
        self._running += 1
        return unit

    def stop(self, error: ZipMoeError) -> None:
        """Fails the job with an error and drops the units that have not been taken."""
        self.error = self.error or error
        self._next = self._ready = len(self._units)

    def settle(self) -> None:
        """Counts a unit as over, checks included."""
        self._running -= 1

    @abstractmethod
    def done(self, unit: Unit) -> Sequence[Any]:
        """Counts a unit as done; returns the parts that are now complete and have to be checked."""

    @abstractmethod
    def check(self, part: Any) -> None:
        """Verifies a complete part; without the pool's lock.

        Raises:
            CorruptData: the part is not what was packed.
        """

    @abstractmethod
    def checked(self, parts: Sequence[Any]) -> bool:
        """Counts parts as valid; returns whether they complete the first tensor while others are missing."""

    @abstractmethod
    def let_go(self) -> None:
        """Drops the views of the slots, so that the arenas can be closed."""


class JobEvent(NamedTuple, Generic[AnyJob]):
    """Report on a job: the job has `ended`, or the first tensor is complete while other tensors are not.

    Before the end the job belongs to the pool. The receiver may then access only what never changes.
    """

    job: AnyJob
    ended: bool
