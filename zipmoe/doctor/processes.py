"""Checks the sockets and the open files of the three services."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from zipmoe.doctor.finding import Finding, fail, ok, warn
from zipmoe.errors import ZipMoeError
from zipmoe.process.runtime import SocketPaths, runtime_directory

LONGEST_SOCKET_PATH_BYTES = 107
"""sun_path holds 108 bytes with its closing zero."""

COMFORTABLE_FILES = 1024
OTHER_FILES = 128
"""Files that a process opens beside expert files: libraries, sockets, pipes."""


def check_processes(directory: Path | None, expert_files: int) -> Iterator[Finding]:
    """Checks the run directory and the limit of open files.

    Args:
        directory: the run directory, None for the default; created if missing.
        expert_files: number of expert files of the store; 0 without a store.
    """
    yield check_sockets(directory)
    yield check_open_files(expert_files)


def check_sockets(directory: Path | None) -> Finding:
    """Checks the run directory and the length of the socket paths."""
    try:
        sockets = SocketPaths(runtime_directory(directory))
    except ZipMoeError as error:
        return fail("run directory", error.message, error.diagnostics())
    paths = (
        *(sockets.expert_store, sockets.e_arena, sockets.sm_arena),
        *(sockets.decoder, sockets.tensor_arena, sockets.router),
    )
    longest = max(len(os.fsencode(path)) for path in paths)
    found = f"{sockets.directory}, socket paths of up to {longest} bytes"
    if longest > LONGEST_SOCKET_PATH_BYTES:
        return fail(
            "run directory", found, f"choose a shorter --runtime-dir: {LONGEST_SOCKET_PATH_BYTES} bytes at most"
        )
    return ok("run directory", found)


def check_open_files(expert_files: int) -> Finding:
    """Checks the limit of open files, because the expert store keeps every expert file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} at most, {hard} if asked for"
    if soft < expert_files + OTHER_FILES:
        return fail("open files", found, f"raise the limit (`ulimit -n`): the store has {expert_files} expert files")
    if soft < COMFORTABLE_FILES:
        return warn("open files", found, f"raise the limit (`ulimit -n {COMFORTABLE_FILES}`): each client takes one")
    return ok("open files", found)
