"""A compiler and an emulator for aarch64, the system's own or Debian's from the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


class Unobtainable(Exception):
    """The tools are not on this machine and cannot be fetched; the message says why."""


@dataclass(frozen=True)
class Aarch64:
    """Commands that compile for aarch64 and run the result here."""

    compiler: tuple[str, ...]
    emulator: tuple[str, ...]
    library_path: str

    def _run(self, command: Sequence[str | Path]) -> bytes:
        environment = {**os.environ, "LD_LIBRARY_PATH": self.library_path}
        result = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert result.returncode == 0, f"{command} ended with {result.returncode}: {result.stderr.decode()}"
        return result.stdout

    def compile(self, sources: Sequence[Path], include: Path, program: Path) -> None:
        self._run(
            [
                *self.compiler,
                "-O3",
                "-std=c++17",
                "-static",
                "-Wall",
                "-Werror",
                f"-I{include}",
                *sources,
                "-o",
                program,
            ]
        )

    def run(self, program: Path, *arguments: str) -> bytes:
        return self._run([*self.emulator, program, *arguments])


def find_aarch64() -> Aarch64:
    """Finds the tools, fetching them if need be (55 MB, once)."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if compiler and emulator:
        return Aarch64((compiler,), (emulator,), os.environ.get("LD_LIBRARY_PATH", ""))
    return _fetch()


def _fetch() -> Aarch64:
    if shutil.which("gcc") is None:
        raise Unobtainable("there is no gcc to tell which version of the cross-compiler to fetch")
    # Debian's compilers for all targets have one version, and share the libraries of the one that is installed.
    gcc = (
        subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=True).stdout.split(".")[0].strip()
    )
    packages = [
        *(f"{name}-{gcc}-aarch64-linux-gnu" for name in ("g++", "gcc")),
        *(f"{name}-{gcc}-dev-arm64-cross" for name in ("libgcc", "libstdc++")),
        *("binutils-aarch64-linux-gnu", "libbinutils", "libjansson4"),
        *("libc6-arm64-cross", "libc6-dev-arm64-cross", "linux-libc-dev-arm64-cross"),
        *("qemu-user", "libcapstone4", "libglib2.0-0", "libgnutls30", "libnuma1", "liburing2"),
    ]
    fetched = subprocess.run(
        [REPOSITORY / "scripts" / "fetch_debian.sh", *packages], capture_output=True, text=True, check=False
    )
    if fetched.returncode != 0:
        raise Unobtainable(fetched.stderr.strip())
    usr = Path(fetched.stdout.strip()) / "usr"
    target = usr / "aarch64-linux-gnu"
    return Aarch64(
        compiler=(str(usr / "bin" / f"aarch64-linux-gnu-g++-{gcc}"), f"-B{target}/bin", f"-L{target}/lib"),
        emulator=(str(usr / "bin" / "qemu-aarch64"),),
        library_path=":".join(str(folder) for folder in (usr / "lib").glob("*-linux-gnu")),
    )
