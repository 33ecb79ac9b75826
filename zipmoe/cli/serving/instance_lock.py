"""A lock file that admits one instance at a time. The kernel releases the lock when its holder ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zipmoe.errors import AlreadyRunning


@contextmanager
def instance_lock(path: Path) -> Iterator[None]:
    """Holds a lock file during the block and removes the file afterwards.

    Raises:
        AlreadyRunning: another process holds the lock.
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
        # The inodes differ if the last holder removed the file between the open and the lock. This lock would then
        # exclude no other process, because the next process would create a new file.
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
