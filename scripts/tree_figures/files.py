"""The source files of a tree: the tracked ones of a checkout, or all files where there is no checkout."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

FOLDERS = ("zipmoe", "services", "tests", "benchmarks", "demo", "scripts")
SOURCE_SUFFIXES = {".py", ".cpp", ".h", ".c"}
GENERATED_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
NOT_WALKED = {".venv", "build", ".git", ".cache"}


def tracked(root: Path) -> list[str] | None:
    """Lists the files that git tracks; the answer is None where the folder is no checkout or git does not run."""
    if not (root / ".git").exists():
        return None
    try:
        listed = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return listed.stdout.split("\0")[:-1]


def walked(root: Path) -> Iterator[str]:
    """Lists all files below the folder, except those of builds and caches at its top."""
    for folder, children, names in os.walk(root):
        if Path(folder) == root:
            children[:] = [child for child in children if child not in NOT_WALKED]
        yield from ((Path(folder) / name).relative_to(root).as_posix() for name in names)


def is_source(path: PurePosixPath) -> bool:
    """Says whether people write this file: neither generated code nor anything outside the source folders."""
    is_generated = path.name.endswith(GENERATED_SUFFIXES)
    return path.parts[0] in FOLDERS and path.suffix in SOURCE_SUFFIXES and not is_generated


def source_files(root: Path) -> list[PurePosixPath]:
    """Lists the source files that are there, without symbolic links, in alphabetical order."""
    names = tracked(root)
    paths = {PurePosixPath(name) for name in (walked(root) if names is None else names)}
    return sorted(path for path in paths if is_source(path) and is_plain_file(root / path))


def is_plain_file(path: Path) -> bool:
    """Says whether a path is an ordinary file and no symbolic link."""
    return path.is_file() and not path.is_symlink()
