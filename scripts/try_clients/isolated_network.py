"""Runs the script anew in a network namespace of its own, where only the loopback interface is up."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

MARK: Final = "ZIPMOE_ISOLATED_NETWORK"
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP of Linux
#: Root needs no user namespace; others need one in which they are root.
_WAYS: Final = (("unshare", "--net"), ("unshare", "--net", "--map-root-user"))


def isolate(module: str, words: Sequence[str]) -> bool:
    """Replaces this process by one that runs a module in a network namespace, if the machine allows that.

    In the process that takes its place, brings the loopback interface up.

    Args:
        module: module to run.
        words: its arguments.

    Returns:
        Whether this process is in such a namespace. False where no namespace can be made.
    """
    if os.environ.get(MARK):
        _bring_loopback_up()
        return True
    for way in _WAYS if shutil.which("unshare") else ():
        if subprocess.run([*way, "true"], capture_output=True, check=False).returncode == 0:
            sys.stdout.flush()
            os.execvpe(way[0], [*way, sys.executable, "-m", module, *words], {**os.environ, MARK: "1"})
    return False


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(any_socket, _GET_FLAGS, request), 16)
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags | _UP))
