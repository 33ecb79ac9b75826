"""The group of all verbs: the one place where an error becomes an exit code."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

from zipmoe.cli.problem import problem_of


class VerbGroup(TyperGroup):
    """Runs a verb, and reports what it raises: expected failures in words, or as JSON where `--json` was given."""

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
                # Generated text may hold what the terminal's encoding has not.
                stream.reconfigure(errors="replace")
        args = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in (args[: args.index("--")] if "--" in args else args)
        try:
            # Where usage errors have to be JSON, click must not print them itself.
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
