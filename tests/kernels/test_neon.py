"""The NEON kernels, compiled for aarch64 and run under qemu; an aarch64 machine runs them in test_planes.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kernels.aarch64 import REPOSITORY, Aarch64, Unobtainable, find_aarch64
from tests.kernels.reference import merged_patterns, split_patterns
from zipmoe import kernels

NATIVE = REPOSITORY / "zipmoe" / "kernels" / "native"


@pytest.fixture(scope="module")
def aarch64() -> Aarch64:
    if "neon" in kernels.backends():
        pytest.skip("this machine runs the NEON kernels natively, in test_planes.py")
    try:
        return find_aarch64()
    except Unobtainable as reason:
        pytest.skip(f"no aarch64 compiler and emulator: {reason}")


@pytest.mark.timeout(600)  # the first run fetches a compiler and an emulator
def test_neon_equals_the_reference_on_every_pattern_length_and_alignment(aarch64: Aarch64, tmp_path: Path) -> None:
    program = tmp_path / "vectors"
    kernel_sources = [NATIVE / name for name in ("dispatch.cpp", "planes_scalar.cpp", "planes_neon.cpp")]
    aarch64.compile([Path(__file__).parent / "vectors.cpp", *kernel_sources], NATIVE, program)

    sm_plane, e_plane = split_patterns()
    expected = torch.cat([merged_patterns().view(torch.uint8), sm_plane, e_plane])
    assert aarch64.run(program, "neon") == expected.numpy().tobytes()
