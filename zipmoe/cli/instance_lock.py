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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"another zipmoe already runs in {path.parent}", next_step="stop it, or choose another --runtime-dir"
            ) from None
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
