"""The dependencies of every promised Python and architecture can be installed together."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu")
UNREACHABLE = re.compile(r"Failed to fetch|error sending request|dns error|Could not connect|network", re.IGNORECASE)

pytestmark = pytest.mark.slow


def test_the_oldest_python_of_this_list_is_the_promised_one() -> None:
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    "python", [PYTHONS[0], *(pytest.param(each, marks=pytest.mark.extra) for each in PYTHONS[1:-1]), PYTHONS[-1]]
)
def test_every_dependency_resolves(python: str, platform: str) -> None:
    uv = Path(sys.executable).with_name("uv")
    target = (f"--python-version={python}", f"--python-platform={platform}")
    resolved = subprocess.run(
        [uv, "pip", "compile", "-q", "pyproject.toml", "--extra=gateway", "--extra=plot", "--no-header", *target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if resolved.returncode and UNREACHABLE.search(resolved.stderr):
        pytest.skip(f"the package index cannot be reached: {resolved.stderr.strip().splitlines()[0]}")
    assert resolved.returncode == 0, resolved.stderr
    names = {re.split(r"[=<>\[ ]", line)[0] for line in resolved.stdout.splitlines() if line[:1].isalnum()}
    assert {re.split(r"[=<>\[ ]", each)[0].lower() for each in PROJECT["dependencies"]} <= names
