"""A decode step enters OpenMP only in listed operations: a barrier waits for any thread that another job holds up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that counts the parallel regions of a process in which it is loaded first."""
    library = tmp_path_factory.mktemp("openmp") / "regions.so"
    source = Path(__file__).with_name("openmp_regions.cpp")
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    return library


@pytest.mark.parametrize(("family", "fp32_gate"), [("qwen2_moe", False), ("olmoe", False), ("mixtral", True)])
def test_a_decode_step_enters_openmp_in_the_listed_operations_only(
    family: str, fp32_gate: bool, counter: Path, tmp_path: Path
) -> None:
    """Those are, in stock's code: rotary cosine and sine; with several rows, a gate's softmax and fp32 products."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.model.program.openmp_steps", counter, family, tmp_path],
        env=os.environ | {"LD_PRELOAD": str(counter)},
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    counts = json.loads(ran.stdout.splitlines()[-1])
    assert counts["all"] > 0  # the counter counts
    assert counts["recorded"] == counts["layers"]
    assert counts["1"] <= counts["rotary"]
    for rows in (2, 4):
        gate = counts["gate"] + fp32_gate * rows
        assert counts[str(rows)] <= counts["rotary"] + gate * counts["layers"]
