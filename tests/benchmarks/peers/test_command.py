"""The whole benchmark on a tiny checkpoint: real processes in real cgroups."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.real_cgroup import real_cgroup

FIELDS = {
    "system", "model", "budget_gib", "batch", "ttft_ms", "tpot_ms", "tokens_per_s", "bytes_per_token", "peak_bytes",
    "disk_gbps", "vs_limit", "tokens_match",
}  # fmt: skip


def benchmark(folder: Path, *arguments: str) -> str:
    work = {"models": "tiny", "budgets": 1, "batches": 2, "prompt-tokens": 16, "tokens": 5, "rounds": 1, "prompts": 2}
    options = [f"--{name}={value}" for name, value in work.items()]
    command = [sys.executable, "-m", "benchmarks.peers", f"--work-dir={folder}", *options, *arguments]
    ended = subprocess.run(command, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.extra  # takes two minutes
def test_systems_run_in_turn_answer_as_stock_and_an_interrupted_benchmark_goes_on(tmp_path: Path) -> None:
    with real_cgroup(1 << 30):
        pass
    assert "3 of 3 runs are left" in benchmark(tmp_path, "--systems", "zipmoe,lru,floor")
    records = tmp_path / "records.jsonl"
    lines = records.read_text().splitlines()
    assert len(lines) == 3 * 2
    records.write_text("\n".join(lines[:-1]) + "\n")  # the last run was interrupted after its first job
    assert "1 of 3 runs are left" in benchmark(tmp_path, "--systems", "zipmoe,lru,floor", "--plan")
    rows = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert {row["system"] for row in rows} == {"zipmoe", "lru", "floor"}
    for row in rows:
        assert row.keys() >= FIELDS
        assert row["tokens_match"], row["problem"]
        assert 0 < row["peak_bytes"] <= row["budget_gib"] * 2**30
        assert row["vs_limit"] > 0
    assert (tmp_path / "peers.svg").exists() and (tmp_path / "peers.png").exists()
