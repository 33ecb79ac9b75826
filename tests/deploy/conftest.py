"""Prometheus from Debian's package, unpacked into a cache folder (no root, no installation), and a small store."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.trio import run_verb

_FETCH = Path(__file__).parents[2] / "scripts" / "fetch_debian.sh"


@pytest.fixture(scope="session")
def prometheus_programs() -> Path:
    """The folder with `prometheus` and `promtool`: the machine's own, or Debian's."""
    installed = shutil.which("promtool")
    if installed is not None and shutil.which("prometheus") is not None:
        return Path(installed).parent
    fetched = subprocess.run([str(_FETCH), "prometheus"], capture_output=True, text=True, check=False)
    if fetched.returncode != 0:
        pytest.skip(f"no Prometheus here: {fetched.stderr.strip()}")
    return Path(fetched.stdout.strip()) / "usr" / "bin"


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed synthetic model of two layers with eight experts each."""
    folder = tmp_path_factory.mktemp("small")
    run_verb("synth", "qwen2_moe", folder / "checkpoint", "--layers", "2")
    run_verb("pack", folder / "checkpoint", folder / "store")
    return folder / "store"
