"""Wheels for both architectures: what they are called is what is in them."""

from __future__ import annotations

import os
import platform
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.kernels.emulated.library import EmulatedLibrary
from tests.kernels.emulated.machine import REPOSITORY, EmulatedMachine, Unobtainable, build

MACHINES = {"x86_64": 62, "aarch64": 183}
"""e_machine of an ELF header."""

KERNELS = "zipmoe/kernels/libzipmoe_kernels.so"

pytestmark = pytest.mark.slow


def unpacked(architecture: str, folder: Path) -> Path:
    """Builds a wheel, checks its name, and unpacks it."""
    built = subprocess.run(
        [REPOSITORY / "scripts" / "wheel.sh", architecture],
        env={**os.environ, "PYTHON": sys.executable, "WHEEL_DIR": str(folder / "dist")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    wheel = Path(built.stdout.strip())
    assert re.fullmatch(rf"zipmoe-[0-9.]+-py3-none-(manylinux\w+\.)*manylinux_2_\d+_{architecture}\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def machine_of(library: Path) -> int:
    header = library.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    return int(struct.unpack_from("<H", header, 18)[0])


@pytest.fixture(scope="module")
def aarch64() -> EmulatedMachine:
    if platform.machine() == "aarch64":
        pytest.skip("this machine's own wheel is the one for aarch64")
    try:
        return build()
    except Unobtainable as reason:
        pytest.skip(f"no aarch64 compiler and emulator: {reason}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel of this machine."""
    return unpacked(platform.machine(), tmp_path_factory.mktemp("wheel"))


def test_the_wheel_of_this_machine_can_be_imported(site: Path, tmp_path: Path) -> None:
    assert machine_of(site / KERNELS) == MACHINES[platform.machine()]
    program = "from zipmoe.kernels import backends; print(backends.__file__, *backends.backends())"
    # Neither from the repository nor from an editable installation, whose zipmoe would come first.
    ran = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    file, *backends = ran.stdout.split()
    assert Path(file).is_relative_to(site)
    assert backends[-1] == "scalar"


def test_the_wheel_claims_no_name_of_strangers(site: Path) -> None:
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"zipmoe"}
    folders = [path.name for path in (site / "zipmoe" / "services").iterdir() if path.is_dir()]
    assert sorted(folders) == ["decoder", "expert_store", "gateway", "router"]
    assert not any(path.is_symlink() for path in site.rglob("*"))
    assert not (site / "zipmoe" / "kernels" / "native").exists()


@pytest.mark.extra
def test_the_wheel_for_aarch64_holds_kernels_that_run_there(tmp_path: Path, aarch64: EmulatedMachine) -> None:
    library_path = unpacked("aarch64", tmp_path) / KERNELS
    assert machine_of(library_path) == MACHINES["aarch64"]
    *runner, _ = aarch64.runner
    library = EmulatedLibrary((*runner, str(library_path)))
    library.zipmoe_backend_count.argtypes = []
    assert library.zipmoe_backend_count() == 2
    library.close()
