"""Refuses inputs that are no regular files, before an open or a read of them can block."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from zipmoe.errors import InvalidRequest

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular_file(path: Path) -> None:
    """Checks that a path leads to a regular file; symbolic links are followed. Opens nothing.

    Raises:
        InvalidRequest: the path leads to a directory, FIFO, socket or device.
        OSError: as `stat` does, for example because there is no such file.
    """
    _check(path, os.stat(path).st_mode)


def open_regular_file(path: Path) -> int:
    """Opens a regular file for reading and returns the descriptor, which the caller closes.

    The open never blocks, also when another process replaces the file in the meantime.

    Raises:
        InvalidRequest: the path leads to a directory, FIFO, socket or device.
        OSError: as `open` does.
    """
    check_regular_file(path)  # opening a device may already have an effect
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check(path, os.fstat(descriptor).st_mode)
    except InvalidRequest:
        os.close(descriptor)
        raise
    return descriptor


def _check(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise InvalidRequest(
            f"{path} is {kind}, not a regular file", next_step="put the file itself, or a link to it, in that place"
        )
