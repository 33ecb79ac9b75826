"""Records, the rows made of them, and going on after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers.record import RESIDENT, PeerCase, PeerRun, Record, Records
from benchmarks.peers.row import RatioSpread, ratios, spread
from benchmarks.peers.schedule import Selection, clock, expected_s, left_of
from zipmoe.errors import InvalidRequest

SELECTION = Selection(["tiny"], ["zipmoe", "lru", "floor"], ["3", "4"], [1, 4], [64, 512], 48, rounds=2, jobs=3)
CASE = PeerCase("tiny", "lru", "4", 1, 64, 48)


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    assert list(records) == []
    written = [
        Record(PeerRun(CASE, 1), 0, ttft_ms=1.5, facts={"slots": 9}),
        Record(PeerRun(CASE, 1), 1, problem="killed"),
    ]
    for record in written:
        records.add(record)
    assert list(records) == written


def test_a_job_that_was_done_again_counts_once(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    for ttft_ms in (1.0, 2.0):
        records.add(Record(PeerRun(CASE, 1), 0, ttft_ms=ttft_ms))
    assert [record.ttft_ms for record in records] == [2.0]


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text(Record(PeerRun(CASE, 1), 0).line() + '\n{"run": 3}\n')
    with pytest.raises(InvalidRequest, match="line 2"):
        list(Records(tmp_path / "records.jsonl"))


def test_every_combination_is_run_once_a_round_and_systems_take_turns() -> None:
    runs = SELECTION.runs()
    assert len(runs) == len(set(runs)) == 2 * 3 * (2 * 2 + 1)
    assert [run.case.system for run in runs[:3]] == ["floor", "zipmoe", "lru"]
    assert [run.case.system for run in runs[15:18]] == ["floor", "lru", "zipmoe"]


def test_the_floor_runs_with_everything_resident_alone() -> None:
    assert {run.case.budget for run in SELECTION.runs() if run.case.system == "floor"} == {RESIDENT}
    assert {run.case.budget for run in SELECTION.runs() if run.case.system == "lru"} == {"3", "4"}


def test_longer_prompts_are_there_for_their_first_token() -> None:
    assert {run.case.shape.new_tokens for run in SELECTION.runs() if run.case.prompt_tokens == 512} == {2}


def test_a_run_is_done_when_all_its_jobs_are_recorded_or_one_has_a_problem() -> None:
    runs = [PeerRun(CASE, index) for index in range(4)]
    records = [Record(runs[0], index) for index in range(3)]
    records += [Record(runs[1], 0), Record(runs[2], 0, problem="refused")]
    assert left_of(runs, records, 3) == [runs[1], runs[3]]


def test_a_run_is_expected_to_take_as_long_as_it_took() -> None:
    records = [Record(PeerRun(CASE, index), 2, run_s=40.0 + index) for index in range(3)]
    assert expected_s(PeerRun(CASE, 7), 3, records) == 41
    assert expected_s(PeerRun(CASE, 7), 3, []) > 15
    assert clock(3660) == "1 h 01 min"


def test_a_round_counts_once_however_many_jobs_it_had() -> None:
    assert spread([[1.0, 2.0, 30.0], [None, 4.0], [3.0]]) == RatioSpread(3.0, 2.0, 4.0)
    assert spread([[None], []]) is None


def test_ratios_are_taken_round_by_round() -> None:
    own = [
        Record(PeerRun(CASE._replace(system="zipmoe"), index), 0, tpot_ms=value) for index, value in enumerate((1, 4))
    ]
    other = [Record(PeerRun(CASE, index), 0, tpot_ms=value) for index, value in enumerate((10, 20, 50))]
    failed = [Record(PeerRun(CASE._replace(system="llama"), 0), 0, problem="killed")]
    found = ratios([*own, *other, *failed], "zipmoe", lambda record: record.tpot_ms)
    assert set(found) == {CASE}
    assert found[CASE].least == pytest.approx(0.1) and found[CASE].most == pytest.approx(0.2)
