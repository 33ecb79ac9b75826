"""Scenario files: what a synchronous object is told, line by line, and beneath each line, indented, what came of it.

    # One decoder, one expert.
    join a workers=1 slots=2
        a[] queued=0s
    assign 0.1 4
        a
        a[0.1] queued=4s

Run the tests with ZIPMOE_REWRITE_SCENARIOS=1 to write what comes of the events now into the files, and read the diff.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

_INDENT = "    "
_REWRITE = "ZIPMOE_REWRITE_SCENARIOS"


def scenario_files(prefix: str) -> list[Path]:
    """The scenario files whose names begin with `prefix`."""
    return sorted(Path(__file__).parent.glob(f"{prefix}*.txt"))


def check_scenario(path: Path, tell: Callable[[list[str]], Iterable[str]]) -> None:
    """Tells an object the events of a file, and compares what comes of them.

    Args:
        path: the scenario.
        tell: carries out one event, given as its words; returns lines that say what came of it.
    """
    lines = path.read_text().splitlines()
    written: list[str] = []
    for line in lines:
        if line.startswith(_INDENT):
            continue
        written.append(line)
        if line and not line.startswith("#"):
            written += [_INDENT + outcome for outcome in tell(line.split())]
    if os.environ.get(_REWRITE):
        path.write_text("\n".join(written) + "\n")
    else:
        assert written == lines, f"{path.name} no longer holds; {_REWRITE}=1 rewrites it"
