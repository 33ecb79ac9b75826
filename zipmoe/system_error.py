"""Describes failed system calls in the style of our messages."""

from __future__ import annotations

import errno
import os

from zipmoe.errors import CorruptData, InvalidRequest, ResourceExhausted, ZipMoeError


def reason_of(error: OSError) -> str:
    """Returns why a system call failed, in lower case: "no space left on device".

    The text comes from `errno` where that is the kernel's number: asyncio puts a sentence of its own into `strerror`.
    Errors of `ssl` and of `socket.getaddrinfo` have numbers of their own and keep their text.
    """
    if error.errno is not None and type(error).__module__ == "builtins":
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error) or type(error).__name__).lower()


def open_error(name: str, error: OSError) -> ZipMoeError:
    """Returns the error of a file that could not be opened: no descriptor is left, no permission, or damage."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceExhausted(f"cannot open {name}: {reason_of(error)}", next_step="raise the limit `ulimit -n`")
    if isinstance(error, PermissionError):
        return InvalidRequest(f"no permission to read {name}")
    return CorruptData(f"cannot open {name}: {reason_of(error)}")
