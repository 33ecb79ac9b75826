"""The NEON kernels, cross-compiled for aarch64 and run under qemu by the same tests that hold the kernels of this CPU.

An aarch64 machine runs these tests natively and skips this module.
"""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.kernels.emulated.machine import REPOSITORY, Unobtainable, build
from zipmoe.kernels import backends as kernel_backends


@pytest.fixture(scope="module", autouse=True)
def _machine() -> None:
    if "neon" in kernel_backends.backends():
        pytest.skip("this machine runs the NEON kernels natively, in the tests that this module repeats")
    try:
        build()
    except Unobtainable as reason:
        pytest.skip(f"no aarch64 compiler and emulator: {reason}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["tests/kernels", "tests/golden", pytest.param("tests/codec", marks=pytest.mark.extra)]
)
def test_the_kernels_of_an_emulated_aarch64_pass(folder: str) -> None:
    arguments = ["-p", "tests.kernels.emulated.plugin", "-p", "no:cacheprovider", f"--ignore={__file__}", folder]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"kernels: neon, scalar, emulated on {platform.machine()}" in ended.stdout, ended.stdout
