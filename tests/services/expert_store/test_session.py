"""The owner of the chunk arenas: what it refuses, and which slots are free when."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import pytest

from tests.services.slots import ChunkArenas
from tests.services.tiny_store import TinyStore
from zipmoe.errors import CorruptData, DeadlineExceeded, InvalidRequest, NotFound, SlotLeased, StaleSlot, ZipMoeError
from zipmoe.residency.pools import Completed, Operations, Pool, Read, Recover, Release, Urgency
from zipmoe.services.expert_store.job import ReadJob
from zipmoe.services.expert_store.plan import read_planner
from zipmoe.services.expert_store.session import ReadSessions
from zipmoe.store.read.reader import StoreReader
from zipmoe.types import ExpertKey, Part, SlotRef


class HeldJobs:
    """A pool that only collects jobs; the test ends them."""

    def __init__(self) -> None:
        self.jobs: list[ReadJob] = []
        self.given_up: list[tuple[str, list[int]]] = []
        """Name of the error, and the operations that were meant."""

    def make_ready(self, job: ReadJob) -> None:
        job.make_ready(first_tensor_only=False)
        self.jobs.append(job)

    def give_up(self, error: ZipMoeError, is_meant: Callable[[ReadJob], bool]) -> None:
        meant = [job.read.operation_id for job in self.jobs if is_meant(job)]
        self.given_up.append((type(error).__name__, meant))


class SessionSetup:
    """An owner of three slots in each arena."""

    def __init__(self, store: TinyStore, reader: StoreReader) -> None:
        self.arenas = ChunkArenas(store.manifest, 3)
        self.io = HeldJobs()
        plan = read_planner(reader, 4096)
        self.owner = ReadSessions(self.arenas.e, self.arenas.sm, self.io, plan)  # type: ignore[arg-type]
        self.key = store.keys()[0]

    def read(self, operation_id: int, slot: int, generation: int = 1, parts: Part = Part.ALL) -> Read:
        return self.arenas.read(operation_id, self.key, slot, generation, parts=parts)

    def apply(self, holder: str, *reads: Read, releases: Collection[Release] = ()) -> list[Completed]:
        return self.owner.apply(holder, Operations(releases=list(releases), reads=list(reads)))

    def end(self, index: int, error: ZipMoeError | None = None) -> Completed:
        job = self.io.jobs[index]
        job.error = error
        job.let_go()
        return self.owner.ended(job)

    def counts(self, pool: Pool) -> tuple[int, int, int]:
        found = self.owner.pools[pool].slots.counts()
        return found["free"], found["writing"], found["held"]

    def both(self) -> tuple[int, int, int]:
        """Slots that are free, written and held, the same in both arenas."""
        assert self.counts(Pool.E) == self.counts(Pool.SM)
        return self.counts(Pool.E)


@pytest.fixture
def sessions(tiny_store: TinyStore) -> Iterator[SessionSetup]:
    reader = StoreReader(tiny_store.path, tiny_store.manifest)
    made = SessionSetup(tiny_store, reader)
    yield made
    for job in made.io.jobs:
        job.let_go()
    reader.close()
    made.arenas.close()


def test_read_slots_are_held_until_they_are_released(sessions: SessionSetup) -> None:
    assert sessions.apply("a", sessions.read(1, 0)) == []
    assert sessions.both() == (2, 1, 0)
    result = sessions.end(0)
    assert (result.operation_id, result.error) == (1, None)
    assert sessions.both() == (2, 0, 1)
    sessions.apply("a", releases=[Release(Pool.SM, sessions.arenas.sm_ref(0))])
    assert (sessions.counts(Pool.E), sessions.counts(Pool.SM)) == ((2, 0, 1), (3, 0, 0))
    sessions.apply("a", releases=[Release(Pool.E, sessions.arenas.e_ref(0))])
    assert sessions.both() == (3, 0, 0)


@pytest.mark.parametrize(("parts", "pool", "other"), [(Part.E, Pool.E, Pool.SM), (Part.SM, Pool.SM, Pool.E)])
def test_a_read_of_one_part_leases_one_slot(sessions: SessionSetup, parts: Part, pool: Pool, other: Pool) -> None:
    sessions.apply("a", sessions.read(1, 0, parts=parts))
    assert (sessions.counts(pool), sessions.counts(other)) == ((2, 1, 0), (3, 0, 0))
    sessions.end(0)
    assert (sessions.counts(pool), sessions.counts(other)) == ((2, 0, 1), (3, 0, 0))


def test_releases_are_applied_before_the_reads_of_the_same_batch(sessions: SessionSetup) -> None:
    sessions.apply("a", sessions.read(1, 0))
    sessions.end(0)
    assert sessions.apply("a", sessions.read(2, 0, 2), releases=sessions.arenas.releases(0)) == []


@pytest.mark.parametrize("leased_by", ["a", "another"])
def test_reading_over_a_leased_slot_is_refused(sessions: SessionSetup, leased_by: str) -> None:
    sessions.apply(leased_by, sessions.read(1, 0))
    (while_written,) = sessions.apply("a", sessions.read(2, 0, 2))
    sessions.end(0)
    (while_held,) = sessions.apply("a", sessions.read(3, 0, 3))
    assert isinstance(while_written.error, SlotLeased)
    assert isinstance(while_held.error, SlotLeased)
    assert sessions.both() == (2, 0, 1)


@pytest.mark.parametrize("taken", [Part.E, Part.SM])
def test_a_read_that_is_refused_one_slot_leases_neither(sessions: SessionSetup, taken: Part) -> None:
    sessions.apply("a", sessions.read(1, 0, parts=taken))
    sessions.end(0)
    before = sessions.counts(Pool.E), sessions.counts(Pool.SM)
    (refused,) = sessions.apply("a", sessions.read(2, 0, 2))
    assert isinstance(refused.error, SlotLeased)
    assert (sessions.counts(Pool.E), sessions.counts(Pool.SM)) == before
    free = sessions.read(3, 0, 2, parts=Part.ALL & ~taken)  # the other slot has not even seen the generation
    assert sessions.apply("a", free) == []


def test_stale_generations_foreign_epochs_unknown_slots_and_experts_are_refused(sessions: SessionSetup) -> None:
    sessions.apply("a", sessions.read(1, 0, 5))
    sessions.end(0)
    sessions.apply("a", releases=sessions.arenas.releases(0, 5))
    sound, e_ref, sm_ref = sessions.read(2, 0, 9), sessions.arenas.e_ref(0, 9), sessions.arenas.sm_ref(0, 9)

    def into(operation_id: int, e_slot: SlotRef, sm_slot: SlotRef) -> Read:
        return sound._replace(operation_id=operation_id, e_slot=e_slot, sm_slot=sm_slot)

    reads = [
        (sessions.read(2, 0, 5), StaleSlot),
        (into(3, e_ref._replace(arena_epoch=1), sm_ref), StaleSlot),
        (into(4, e_ref, sm_ref._replace(arena_epoch=1)), StaleSlot),
        (into(5, sm_ref, e_ref), StaleSlot),
        (into(6, e_ref, sm_ref._replace(owner_id="other")), StaleSlot),
        (into(7, e_ref._replace(slot=3), sm_ref), NotFound),
        (into(8, e_ref, sm_ref._replace(slot=3)), NotFound),
        (sound._replace(operation_id=9, key=ExpertKey(0, 99)), NotFound),
        (sound._replace(operation_id=10, key=ExpertKey(99, 0)), NotFound),
    ]
    refused = sessions.apply("a", *(read for read, _ in reads))
    assert [(result.operation_id, type(result.error)) for result in refused] == [
        (read.operation_id, kind) for read, kind in reads
    ]
    assert sessions.both() == (3, 0, 0)


def test_a_failed_read_frees_both_slots(sessions: SessionSetup) -> None:
    sessions.apply("a", sessions.read(1, 0))
    error = CorruptData("broken")
    assert sessions.end(0, error).error is error
    assert sessions.both() == (3, 0, 0)


def test_slots_being_written_when_their_session_ends_are_freed_by_the_write(sessions: SessionSetup) -> None:
    sessions.apply("a", sessions.read(1, 0), sessions.read(2, 1))
    sessions.end(0)
    sessions.owner.close("a")
    assert [(error, 2 in meant) for error, meant in sessions.io.given_up] == [("Unavailable", True)]
    assert sessions.both() == (2, 1, 0)
    assert sessions.owner.writing("a") == 1
    sessions.end(1)
    assert sessions.both() == (3, 0, 0)
    assert sessions.owner.writing("a") == 0


def test_a_foreign_or_repeated_release_changes_nothing(sessions: SessionSetup) -> None:
    sessions.apply("a", sessions.read(1, 0))
    sessions.end(0)
    sessions.apply("b", releases=[*sessions.arenas.releases(0), *sessions.arenas.releases(1)])
    assert sessions.both() == (2, 0, 1)
    sessions.apply("a", releases=sessions.arenas.releases(0) * 2)
    assert sessions.both() == (3, 0, 0)


def test_cancels_reach_the_threads_before_the_reads_of_the_same_batch(sessions: SessionSetup) -> None:
    urgent = sessions.read(7, 0)._replace(urgency=Urgency.PREFETCH)
    assert sessions.owner.apply("a", Operations(cancels=[7, 8], reads=[urgent])) == []
    assert sessions.io.given_up == [("Cancelled", [])]
    assert [job.read for job in sessions.io.jobs] == [urgent]


def test_the_deadline_of_a_batch_is_that_of_what_is_needed_and_not_of_guesses(sessions: SessionSetup) -> None:
    guess = sessions.read(2, 1)._replace(urgency=Urgency.PREFETCH)
    sessions.owner.apply("a", Operations(reads=[sessions.read(1, 0), guess], deadline_s=5.0))
    assert [job.begin_by_s for job in sessions.io.jobs] == [5.0, math.inf]


def test_a_late_read_frees_its_slots_as_a_cancelled_one_does(sessions: SessionSetup) -> None:
    sessions.apply("a", sessions.read(1, 0))
    error = DeadlineExceeded("late")
    assert sessions.end(0, error).error is error
    assert sessions.both() == (3, 0, 0)
    assert sessions.owner.writing("a") == 0


def test_what_only_a_decoder_can_do_is_refused(sessions: SessionSetup) -> None:
    slots = SlotRef("decoder", 1, 0, 1)
    recovery = Recover(7, sessions.key, sessions.arenas.e_ref(0), sessions.arenas.sm_ref(0), slots, Urgency.NEEDED)
    operations = Operations(releases=[Release(Pool.TENSOR, slots)], reads=[sessions.read(1, 0)], recoveries=[recovery])
    refused = sessions.owner.apply("a", operations)
    assert [(each.operation_id, type(each.error)) for each in refused] == [(7, InvalidRequest)]
    assert sessions.both() == (2, 1, 0)
