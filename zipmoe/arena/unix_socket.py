"""UNIX sockets in the file system: length of paths, and socket files that killed processes leave behind."""

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
        InvalidRequest: the path is longer than 107 bytes.
    """
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise InvalidRequest(
            f"socket path of {length} bytes, the kernel takes at most {MAX_PATH_BYTES}: {path}",
            next_step="choose a shorter --runtime-dir",
        )


def remove_stale_socket(path: Path, kind: socket.SocketKind) -> None:
    """Removes the socket file of a process that has ended, so that the path can be bound.

    The caller holds a lock against other processes that do the same.

    Raises:
        AlreadyRunning: a running process listens on the path.
        InvalidRequest: the file is not a socket. The file stays.
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
            pass  # another socket type, a full backlog or no permission: a process listens
    raise AlreadyRunning(f"another process listens on {path}")


def remove_own_socket(path: Path, inode: int) -> None:
    """Removes a socket file, unless another process has already replaced it with a new socket."""
    try:
        if os.lstat(path).st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        return
