"""Builds command lines that run modules of this installation."""

from __future__ import annotations

import sys


def python_command(*arguments: str) -> list[str]:
    """Returns a command line for this interpreter that never imports from the working directory.

    `python -m` and `python -c` look for modules in the working directory first. A `zipmoe`, a `torch.py` or a
    `sitecustomize.py` in a user's folder would run instead of the installed module. `-P` leaves that folder off the
    path.

    Args:
        arguments: `-m`, a module and its arguments, or `-c` and a program.
    """
    return [sys.executable, "-P", *arguments]
