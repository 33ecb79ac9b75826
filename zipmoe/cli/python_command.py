"""Command lines that run this installation's modules as processes of their own."""

from __future__ import annotations

import sys


def python_command(*arguments: str) -> list[str]:
    """Returns a command line for this interpreter that never imports from the working directory.

    `python -m` and `python -c` look for modules in the working directory first: a user's folder that holds a `zipmoe`,
    a `torch.py` or a `sitecustomize.py` would run instead of ours. `-P` leaves that folder off the path.

    Args:
        arguments: `-m`, a module and its arguments, or `-c` and a program.
    """
    return [sys.executable, "-P", *arguments]
