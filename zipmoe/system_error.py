"""The reasons of failed calls, in the style of our messages."""

from __future__ import annotations

import os

CHECK_ACCESS = "check the permissions, or run as the owner"
"""Next step where the kernel refuses a file to this user."""


def reason_of(error: OSError) -> str:
    """Returns why a system call failed, in lower case: "no space left on device".

    The text comes from `errno` where that is the kernel's number: asyncio puts a sentence of its own into `strerror`.
    Errors of `ssl` and of `socket.getaddrinfo` have numbers of their own and keep their text.
    """
    if error.errno is not None and type(error).__module__ == "builtins":
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error) or type(error).__name__).lower()


def first_line(error: Exception) -> str:
    """Returns the first line of an exception of another library; the name of its class if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def install_step(error: Exception) -> str | None:
    """Returns the next step after an import that failed for lack of a package; None for any other exception."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    return f"install it with `pip install {package}` and run the same command again"


def one_line(error: Exception) -> str:
    """Returns the class and the text of an exception of another library, on one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
