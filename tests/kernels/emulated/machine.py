"""A compiler and an emulator for aarch64, and the kernels built with them."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
BUILD = REPOSITORY / "build" / "aarch64"


class Unobtainable(Exception):
    """A tool is not on this machine and cannot be fetched; the message says why."""


@dataclass(frozen=True)
class EmulatedMachine:
    """An aarch64 machine in a box: the kernels' library, and the command that lends it to other processes."""

    library: Path
    runner: tuple[str, ...]


def run(command: Sequence[str | Path]) -> str:
    """Runs a build command and returns what it printed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command} ended with {result.returncode}: {result.stdout}{result.stderr}"
    return result.stdout


@functools.cache
def find_tools() -> Path:
    """The folder that `scripts/aarch64_tools.sh` describes; fetched if need be (55 MB, once).

    Raises:
        Unobtainable: There is none, and none can be fetched.
    """
    found = subprocess.run([REPOSITORY / "scripts" / "aarch64_tools.sh"], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise Unobtainable(found.stderr.strip())
    return Path(found.stdout.strip())


def find_cmake() -> str | None:
    """The system's, or the one that pip has put beside Python."""
    return shutil.which("cmake") or shutil.which("cmake", path=Path(sys.executable).parent)


def compile_in(folder: Path, cmake: str, source: Path, *options: str) -> None:
    """Builds what has changed of a CMake project, with all cores."""
    run([cmake, "-S", source, "-B", folder, "-Wno-dev", *options])
    run([cmake, "--build", folder, "--parallel", str(os.cpu_count() or 1)])


@functools.cache
def build() -> EmulatedMachine:
    """Cross-compiles what has changed of the kernels, by the project's own CMakeLists.txt, and the runner.

    Raises:
        Unobtainable: There is no compiler, emulator or CMake.
    """
    cmake = find_cmake()
    if cmake is None:
        raise Unobtainable("there is no cmake")
    tools = find_tools()
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # others may want to build too
        fcntl.flock(lock, fcntl.LOCK_EX)
        toolchain, cache = tools / "toolchain.cmake", BUILD / "CMakeCache.txt"
        if cache.exists() and str(toolchain) not in cache.read_text():
            cache.unlink()  # configured with a toolchain elsewhere, which CMake would go on to look for
            shutil.rmtree(BUILD / "CMakeFiles")
        compile_in(BUILD, cmake, REPOSITORY, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}")
        runner, source = BUILD / "runner", Path(__file__).parent / "runner.cpp"
        if not runner.exists() or runner.stat().st_mtime < source.stat().st_mtime:
            fresh = BUILD / "runner.fresh"
            run([tools / "c++", "-O2", "-std=c++17", "-Wall", "-Wextra", "-Werror", source, "-o", fresh, "-ldl"])
            fresh.replace(runner)
    library = BUILD / "libzipmoe_kernels.so"
    return EmulatedMachine(library, (str(tools / "emulate"), str(runner), str(library)))
