"""The run directory, where the processes of one device find each other's sockets."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from zipmoe.errors import InvalidRequest
from zipmoe.system_error import reason_of

_OWNER_ONLY = 0o700
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class SocketPaths:
    """The sockets in one run directory."""

    directory: Path

    @property
    def expert_store(self) -> Path:
        """Socket of the expert store's gRPC server."""
        return self.directory / "expert-store.sock"

    @property
    def e_arena(self) -> Path:
        """Socket on which the expert store hands out the arena of E-chunks."""
        return self.directory / "e-arena.sock"

    @property
    def sm_arena(self) -> Path:
        """Socket on which the expert store hands out the arena of SM-chunks."""
        return self.directory / "sm-arena.sock"

    @property
    def decoder(self) -> Path:
        """Socket of the decoder's gRPC server."""
        return self.directory / "decoder.sock"

    @property
    def tensor_arena(self) -> Path:
        """Socket on which the decoder hands out the arena of recovered experts."""
        return self.directory / "tensor-arena.sock"

    @property
    def router(self) -> Path:
        """Socket of the router's gRPC server."""
        return self.directory / "router.sock"


def runtime_directory(directory: Path | None = None) -> Path:
    """Returns the run directory, made with mode 0700 if it does not exist.

    Args:
        directory: the directory that the user asked for; None means ZIPMOE_RUNTIME_DIR, else XDG_RUNTIME_DIR/zipmoe,
            else /tmp/zipmoe-UID.

    Raises:
        InvalidRequest: the path cannot be made, is not a directory, belongs to another user, or is writable by others.
    """
    path = (directory or _default_directory()).absolute()
    try:
        path.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
        # A default path must not be a link: in /tmp, another user could have planted one.
        status = path.lstat() if directory is None else path.stat()
    except OSError as error:
        raise InvalidRequest(
            f"cannot make the run directory {path}: {reason_of(error)}",
            next_step="choose another --runtime-dir",
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise InvalidRequest(f"the run directory {path} is not a directory", next_step="choose another --runtime-dir")
    if status.st_uid != os.geteuid():
        raise InvalidRequest(
            f"the run directory {path} belongs to user {status.st_uid}, this process runs as {os.geteuid()}",
            next_step="run all services as one user, or choose another --runtime-dir",
        )
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise InvalidRequest(
            f"the run directory {path} has mode {stat.S_IMODE(status.st_mode):04o}, others may write into it",
            next_step=f"chmod 700 {path}",
        )
    return path


def _default_directory() -> Path:
    if chosen := os.environ.get("ZIPMOE_RUNTIME_DIR"):
        return Path(chosen)
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session and Path(session).is_dir():
        return Path(session) / "zipmoe"
    return Path(f"/tmp/zipmoe-{os.geteuid()}")
