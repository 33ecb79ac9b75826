"""UNIX sockets in the file system: paths that fit, and the files that killed predecessors leave behind."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from zipmoe.errors import AlreadyRunning, InvalidRequest

MAX_PATH_BYTES = 107  # sun_path is 108 bytes with its final zero
_PROBE_TIMEOUT_S = 1.0


def check_socket_path(path: Path) -> None:
    """Refuses a path that does not fit into a socket address.

    Raises:
        InvalidRequest: it is longer than 107 bytes.
    """
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise InvalidRequest(
            f"socket path of {length} bytes, the kernel takes at most {MAX_PATH_BYTES}: {path}",
            next_step="choose a shorter --runtime-dir",
        )


def remove_stale_socket(path: Path, kind: socket.SocketKind) -> None:
    """Removes the socket file of a process that is gone, so that the path can be bound.

    The caller holds a lock against other processes that do the same.

    Raises:
        AlreadyRunning: a living process listens there.
        InvalidRequest: the file is not a socket; it is left alone.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidRequest(f"{path} exists and is not a socket", next_step="move the file out of the way")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass  # another socket type, a full backlog, no permission: somebody is there
    raise AlreadyRunning(f"another process listens on {path}")


def remove_own_socket(path: Path, inode: int) -> None:
    """Removes a socket file unless a successor has already put its own in its place."""
    try:
        if os.lstat(path).st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        return
