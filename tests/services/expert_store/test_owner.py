"""The owner of the chunk arena: what it refuses, and which slots are free when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from services.expert_store.job import ReadJob
from services.expert_store.owner import ChunkOwner
from services.expert_store.plan import read_planner
from tests.services.tiny_store import TinyStore
from zipmoe.arena.arena import Arena
from zipmoe.errors import CorruptData, NotFound, SlotLeased, StaleSlot
from zipmoe.residency.base import Read
from zipmoe.store.reader import StoreReader
from zipmoe.types import ExpertKey, Part, SlotRef


class HeldChannel:
    """A channel that only collects jobs; the test ends them."""

    def __init__(self) -> None:
        self.jobs: list[ReadJob] = []
        self.abandoned: list[str] = []

    def submit(self, job: ReadJob) -> None:
        self.jobs.append(job)

    def abandon(self, holder: str) -> None:
        self.abandoned.append(holder)


@pytest.fixture
def desk(tiny_store: TinyStore) -> Any:
    arena = Arena.create("store", tiny_store.manifest.max_record_bytes, 3, lock=False)
    reader = StoreReader(tiny_store.path, tiny_store.manifest)
    channel = HeldChannel()
    owner = ChunkOwner(arena, channel, read_planner(reader, 4096))  # type: ignore[arg-type]

    def ref(slot: int, generation: int) -> SlotRef:
        return SlotRef("store", arena.epoch, slot, generation)

    def end(job: ReadJob, error: Exception | None = None) -> Any:
        job.error = error  # type: ignore[assignment]
        job.let_go()
        return owner.ended(job)

    yield SimpleNamespace(owner=owner, channel=channel, ref=ref, end=end, key=tiny_store.keys()[0])
    for job in channel.jobs:
        job.let_go()
    reader.close()
    arena.close()


def counts(desk: Any) -> tuple[int, int, int]:
    found = desk.owner.slots.counts()
    return found["free"], found["writing"], found["held"]


def test_a_read_slot_is_held_until_it_is_released(desk: Any) -> None:
    assert desk.owner.apply("a", [], [Read(1, desk.key, Part.ALL, desk.ref(0, 1))]) == []
    assert counts(desk) == (2, 1, 0)
    result = desk.end(desk.channel.jobs[0])
    assert (result.operation_id, result.error) == (1, None)
    assert counts(desk) == (2, 0, 1)
    desk.owner.apply("a", [desk.ref(0, 1)], [])
    assert counts(desk) == (3, 0, 0)


def test_releases_are_applied_before_the_reads_of_the_same_batch(desk: Any) -> None:
    desk.owner.apply("a", [], [Read(1, desk.key, Part.ALL, desk.ref(0, 1))])
    desk.end(desk.channel.jobs[0])
    assert desk.owner.apply("a", [desk.ref(0, 1)], [Read(2, desk.key, Part.ALL, desk.ref(0, 2))]) == []


@pytest.mark.parametrize("leased_by", ["a", "another"])
def test_reading_over_a_leased_slot_is_refused(desk: Any, leased_by: str) -> None:
    desk.owner.apply(leased_by, [], [Read(1, desk.key, Part.ALL, desk.ref(0, 1))])
    (while_written,) = desk.owner.apply("a", [], [Read(2, desk.key, Part.ALL, desk.ref(0, 2))])
    desk.end(desk.channel.jobs[0])
    (while_held,) = desk.owner.apply("a", [], [Read(3, desk.key, Part.ALL, desk.ref(0, 3))])
    assert isinstance(while_written.error, SlotLeased)
    assert isinstance(while_held.error, SlotLeased)
    assert counts(desk) == (2, 0, 1)


def test_stale_generations_foreign_epochs_unknown_slots_and_experts_are_refused(desk: Any) -> None:
    desk.owner.apply("a", [], [Read(1, desk.key, Part.ALL, desk.ref(0, 5))])
    desk.end(desk.channel.jobs[0])
    desk.owner.apply("a", [desk.ref(0, 5)], [])
    _, epoch, _, _ = desk.ref(0, 0)
    reads = [
        (Read(2, desk.key, Part.ALL, desk.ref(0, 5)), StaleSlot),
        (Read(3, desk.key, Part.ALL, SlotRef("store", epoch + 1, 0, 9)), StaleSlot),
        (Read(4, desk.key, Part.ALL, SlotRef("other", epoch, 0, 9)), StaleSlot),
        (Read(5, desk.key, Part.ALL, desk.ref(3, 9)), NotFound),
        (Read(6, ExpertKey(0, 99), Part.ALL, desk.ref(0, 9)), NotFound),
        (Read(7, ExpertKey(99, 0), Part.ALL, desk.ref(0, 9)), NotFound),
    ]
    refused = desk.owner.apply("a", [], [read for read, _ in reads])
    assert [(result.operation_id, type(result.error)) for result in refused] == [
        (read.operation_id, kind) for read, kind in reads
    ]
    assert counts(desk) == (3, 0, 0)


def test_a_failed_read_frees_its_slot(desk: Any) -> None:
    desk.owner.apply("a", [], [Read(1, desk.key, Part.ALL, desk.ref(0, 1))])
    error = CorruptData("broken")
    assert desk.end(desk.channel.jobs[0], error).error is error
    assert counts(desk) == (3, 0, 0)


def test_a_slot_being_written_when_its_session_ends_is_freed_by_the_write(desk: Any) -> None:
    desk.owner.apply("a", [], [Read(n, desk.key, Part.ALL, desk.ref(n, 1)) for n in (0, 1)])
    desk.end(desk.channel.jobs[0])
    desk.owner.close("a")
    assert desk.channel.abandoned == ["a"]
    assert counts(desk) == (2, 1, 0)
    assert desk.owner.writing("a") == 1
    desk.end(desk.channel.jobs[1])
    assert counts(desk) == (3, 0, 0)
    assert desk.owner.writing("a") == 0


def test_a_foreign_or_repeated_release_changes_nothing(desk: Any) -> None:
    desk.owner.apply("a", [], [Read(1, desk.key, Part.ALL, desk.ref(0, 1))])
    desk.end(desk.channel.jobs[0])
    desk.owner.apply("b", [desk.ref(0, 1), desk.ref(1, 1)], [])
    assert counts(desk) == (2, 0, 1)
    desk.owner.apply("a", [desk.ref(0, 1), desk.ref(0, 1)], [])
    assert counts(desk) == (3, 0, 0)
