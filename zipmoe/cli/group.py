"""The group of all verbs, which turns every error into an exit code."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

from zipmoe.cli.problem import problem_of


class VerbGroup(TyperGroup):
    """Runs a verb and reports its expected failures, in words or, with `--json`, as JSON."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parses the arguments, runs the verb and exits."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # Generated text may hold characters that the terminal's encoding lacks.
                stream.reconfigure(errors="replace")
        args = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in (args[: args.index("--")] if "--" in args else args)
        try:
            # With --json, click must not print usage errors: they are reported as JSON below.
            result = super().main(
                args, prog_name, complete_var, standalone_mode and not as_json, windows_expand_args, **extra
            )
        except Exception as error:
            problem = problem_of(error)
            if problem is None:
                raise
            problem.print(as_json=as_json)
            sys.exit(problem.exit_code)
        if standalone_mode:
            sys.exit(result if isinstance(result, int) else 0)
        return result
