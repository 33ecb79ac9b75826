"""Bounds: what Belady would have read, what a step takes at least."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers.limits import Floor, Pass, belady_misses, floors, floors_of, step_limit_ms, union
from benchmarks.peers.record import RESIDENT, PeerCase, PeerRun, Record

CASE = PeerCase("tiny", "lru", "4", 2, 64, 48)
PASSES = st.lists(
    st.tuples(st.integers(0, 1), st.frozensets(st.integers(0, 2), min_size=1, max_size=2)), min_size=1, max_size=7
)


def least_misses(passes: list[Pass], slots: int) -> int:
    """Tries everything: the slow twin."""

    @cache
    def least(place: int, held: frozenset[tuple[int, int]]) -> int:
        if place == len(passes):
            return 0
        layer, experts = passes[place]
        needed = frozenset((layer, expert) for expert in experts)
        return len(needed - held) + min(least(place + 1, kept) for kept in subsets(held | needed, slots))

    return least(0, frozenset())


def subsets(keys: frozenset[tuple[int, int]], most: int) -> list[frozenset[tuple[int, int]]]:
    found = [frozenset[tuple[int, int]]()]
    for key in keys:
        found += [each | {key} for each in found if len(each) < most]
    return found


@given(PASSES, st.integers(0, 4))
def test_no_choice_of_what_to_keep_misses_less_than_beladys(passes: list[Pass], slots: int) -> None:
    assert sum(belady_misses(passes, slots)) == least_misses(passes, slots)


def test_with_a_slot_for_each_only_first_uses_miss() -> None:
    passes = [(0, frozenset({1, 2})), (1, frozenset({1})), (0, frozenset({1, 3})), (1, frozenset({1}))]
    assert belady_misses(passes, 9) == [2, 1, 1, 0]


def test_sequences_share_what_they_use() -> None:
    assert union([((1, 2), (3,)), ((2, 5), (3,))]) == ((1, 2, 5), (3,))


@pytest.mark.parametrize(("decode_bytes", "limit_ms"), [(0, 60), (400_000_000, 100), (40_000_000, 60)])
def test_a_step_takes_as_long_as_computing_or_as_reading(decode_bytes: int, limit_ms: float) -> None:
    record = Record(PeerRun(CASE, 0), 0, decode_bytes=decode_bytes, decoded_tokens=4, disk_gbps=2.0)
    assert step_limit_ms(record, Floor(None, 60.0)) == pytest.approx(limit_ms)


def test_without_a_floor_there_is_no_limit() -> None:
    assert step_limit_ms(Record(PeerRun(CASE, 0), 0, decoded_tokens=4, disk_gbps=2.0), None) is None


def test_the_floor_is_the_median_of_its_own_runs_alone() -> None:
    case = CASE._replace(system="floor", budget=RESIDENT)
    records = [Record(PeerRun(case, index), 0, ttft_ms=10.0 + index, step_ms=5.0 + index) for index in range(3)]
    records.append(Record(PeerRun(CASE, 0), 0, ttft_ms=1.0, step_ms=1.0))
    assert floors(records) == {("tiny", 2, 64): Floor(11.0, 6.0)}


def test_a_run_is_compared_with_other_runs_of_the_floor_of_its_model() -> None:
    floor = CASE._replace(system="floor", budget=RESIDENT)
    own, other = Record(PeerRun(floor, 0), 0), Record(PeerRun(floor._replace(model="qwen2_moe"), 0), 0)
    records = [own, other, Record(PeerRun(CASE, 0), 0)]
    assert floors_of(PeerRun(CASE, 1), records) == [own]
    assert floors_of(own.run, records) == []
