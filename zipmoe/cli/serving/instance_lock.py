"""One instance at a time: a lock file that the kernel releases with its holder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zipmoe.errors import AlreadyRunning


@contextmanager
def instance_lock(path: Path) -> Iterator[None]:
    """Holds a lock file during the block, and removes it afterwards.

    Raises:
        AlreadyRunning: another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not _lock(descriptor, path):
            raise AlreadyRunning(
                f"another zipmoe already runs in {path.parent}", next_step="stop it, or choose another --runtime-dir"
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Not so if the last holder removed the file between our open and our lock: whoever comes next makes a new one.
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
