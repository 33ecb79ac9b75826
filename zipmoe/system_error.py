"""The operating system's reasons, in the style of our messages."""

from __future__ import annotations


def reason(error: OSError) -> str:
    """Why a system call failed, in lower case: "no space left on device"."""
    return (error.strerror or type(error).__name__).lower()
