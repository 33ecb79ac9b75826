"""Reasons of operating system errors, in the style of our messages."""

from __future__ import annotations


def reason(error: OSError) -> str:
    """Returns the reason of a failed system call in lower case: "no space left on device"."""
    return (error.strerror or type(error).__name__).lower()
