from __future__ import annotations

from pathlib import Path

import pytest

from tests.calibration.measurement_time import shared_cache
from tests.cli.run import zipmoe
from zipmoe.residency.pools import Grid
from zipmoe.simulation.trace import trace_line
from zipmoe.simulation.workload import DEFAULT_STEPS, Workload, generate

__all__ = ["shared_cache"]

SHORT = ("--generate", "zipf", "--steps", "20")


def record(path: Path, steps: int = 20) -> Path:
    passes = generate(Workload("zipf", steps=steps, grid=Grid(2, 16), prefill_every=10))
    path.write_text("".join(trace_line(routed) + "\n" for routed in passes))
    return path


def test_every_policy_and_the_bound_have_a_row() -> None:
    ran = zipmoe("simulate", *SHORT, "--json")
    assert ran.exit_code == 0
    rows = {row["policy"]: row for row in ran.json["rows"]}
    assert list(rows) == ["adaptive", "zipmoe", "lru", "lfu", "fifo", "marking", "belady"]
    for row in rows.values():
        assert {"policy", "misses", "bytes", "stall_s", "tpot_ms"} <= set(row)
        assert rows["belady"]["misses"] <= row["misses"]
    assert ran.json["slots"] == {"e": 240, "sm": 240, "tensor": 0}


def test_a_table_for_people_says_what_it_rests_on() -> None:
    ran = zipmoe("simulate", *SHORT, "--policy", "lru,fifo", "--capacity", "0.25")
    assert "round numbers" in ran.stdout and "120 E, 120 SM, 0 tensor" in ran.stdout
    assert "belady" not in ran.stdout


def test_a_recorded_trace_is_replayed(tmp_path: Path) -> None:
    ran = zipmoe("simulate", record(tmp_path / "trace.jsonl"), "--policy", "lru", "--json")
    (row,) = ran.json["rows"]
    assert row["misses"] > 0 and row["prefill_misses"] > 0
    assert ran.json["slots"]["e"] == 16


def test_the_seed_decides_the_trace() -> None:
    first, again, other = (
        zipmoe("simulate", *SHORT, "--policy", "lru", "--seed", seed, "--json").json["rows"] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_processes_change_nothing_but_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = zipmoe("simulate", *SHORT, "--policy", "marking,adaptive", "--json").json["rows"]
    monkeypatch.setattr("zipmoe.cli.planning.simulate.PARALLEL_PASSES", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    assert zipmoe("simulate", *SHORT, "--policy", "marking,adaptive", "--json").json["rows"] == alone


def test_traces_are_made_as_long_as_the_help_says() -> None:
    assert f"[default: {DEFAULT_STEPS}]" in zipmoe("simulate", "--help").stdout


def test_a_memory_budget_is_planned() -> None:
    slots = zipmoe("simulate", *SHORT, "--policy", "lru", "--memory-budget", "1GiB", "--json").json["slots"]
    assert 1 <= slots["sm"] <= 120 and slots["e"] >= 1


def test_misses_over_time_are_drawn(tmp_path: Path) -> None:
    plot = tmp_path / "misses.svg"
    assert zipmoe("simulate", *SHORT, "--policy", "lru,adaptive", "--plot", plot).exit_code == 0
    drawn = plot.read_text()
    assert drawn.startswith("<svg") and "adaptive" in drawn and "Misses per decode step" in drawn


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "either a TRACE or --generate NAME"),
        (("trace.jsonl", "--generate", "zipf"), "either a TRACE or --generate NAME"),
        (("no-such-trace.jsonl",), "cannot read the trace no-such-trace.jsonl"),
        (("--generate", "nonsense"), "no workload 'nonsense'"),
        (
            (*SHORT, "--policy", "best"),
            "no policy 'best', only adaptive, zipmoe, lru, lfu, fifo, marking, belady and all",
        ),
        ((*SHORT, "--scheduler", "best"), "no scheduler 'best'"),
        ((*SHORT, "--capacity", "1.5"), "a capacity of 1.5"),
        ((*SHORT, "--capacity", "0.5", "--memory-budget", "1GiB"), "give one of them"),
        ((*SHORT, "--memory-budget", "1MiB"), "bytes of slots are less than"),
        ((*SHORT, "--memory-budget", "much"), "'much' is not a size"),
        ((*SHORT, "--plot", "misses.png"), "plots are SVG files, not 'misses.png'"),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments: tuple[str, ...], says: str) -> None:
    ran = zipmoe("simulate", *arguments, "--json")
    assert ran.exit_code == 2
    assert says in ran.error["message"]


def test_a_damaged_trace_is_refused_with_its_line(tmp_path: Path) -> None:
    trace = record(tmp_path / "trace.jsonl")
    lines = trace.read_text().splitlines()
    lines[6] = lines[6].replace("decode", "warmup").replace("prefill", "warmup")
    trace.write_text("\n".join(lines))
    ran = zipmoe("simulate", trace, "--json")
    assert (ran.exit_code, ran.error["class"]) == (2, "InvalidRequest")
    assert f"{trace}, line 7: phase is 'warmup'" in ran.error["message"]
    trace.write_bytes(b"\xff\xfe\x00")
    assert "it is not text" in zipmoe("simulate", trace, "--json").error["message"]
    trace.write_text("")
    assert "the trace is empty" in zipmoe("simulate", trace, "--json").error["message"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulate")
    shape = ("--layers", "2", "--hidden", "32", "--experts", "16", "--vocab", "300", "--seed", "5")
    assert zipmoe("synth", "qwen2_moe", folder / "model", *shape).exit_code == 0
    assert zipmoe("pack", folder / "model", folder / "store").exit_code == 0
    return folder / "store"


@pytest.mark.usefixtures("shared_cache")
class TestStore:
    def test_its_experts_are_simulated_on_this_machine_within_its_budget(self, packed: Path, tmp_path: Path) -> None:
        trace = record(tmp_path / "trace.jsonl")
        ran = zipmoe("simulate", trace, "--store", packed, "--memory-budget", "2GiB", "--json")
        assert ran.exit_code == 0
        assert len({row["policy"] for row in ran.json["rows"]}) == len(ran.json["rows"]) > 5
        assert sum(ran.json["slots"][pool] for pool in ("sm", "tensor")) >= 32, "every expert has a place"
        assert ran.json["based_on"]["machine"] == "this one, as calibrated"
        half = zipmoe("simulate", trace, "--store", packed, "--capacity", "0.5", "--policy", "lru", "--json").json
        assert half["rows"][0]["misses"] > 0

    def test_a_trace_of_another_model_is_refused(self, packed: Path) -> None:
        ran = zipmoe("simulate", *SHORT, "--store", packed, "--json")
        assert (ran.exit_code, ran.error["class"]) == (2, "InvalidRequest")
        assert "the trace is not of the store" in ran.error["message"]

    def test_a_budget_that_cannot_hold_the_model_is_refused(self, packed: Path, tmp_path: Path) -> None:
        trace = record(tmp_path / "trace.jsonl")
        ran = zipmoe("simulate", trace, "--store", packed, "--memory-budget", "100MiB", "--json")
        assert (ran.exit_code, ran.error["class"]) == (2, "BudgetInfeasible")
