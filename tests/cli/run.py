"""Runs the command line: in this process where that is enough, else as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from zipmoe.cli.__main__ import app


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        (line,) = self.stdout.splitlines()
        return dict(json.loads(line))

    @property
    def error(self) -> dict[str, str]:
        """The error that the last line of stderr holds as JSON."""
        return dict(json.loads(self.stderr.splitlines()[-1])["error"])


def zipmoe(*arguments: object, stdin: str | bytes | None = None) -> Ran:
    """Runs a verb in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, prog_name="zipmoe")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def command(*arguments: object) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "zipmoe", *map(str, arguments)]


def zipmoe_process(*arguments: object, env: dict[str, str] | None = None, stdin: bytes = b"") -> Ran:
    """Runs a verb in a process of its own."""
    ran = subprocess.run(
        command(*arguments), input=stdin, capture_output=True, check=False, env={**os.environ, **(env or {})}
    )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())
