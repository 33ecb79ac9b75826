"""`zipmoe doctor`: checks whether this machine is fit to serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zipmoe.cli.console import JsonFlag, out, print_json
from zipmoe.cli.problem import FAILURE_EXIT_CODE

if TYPE_CHECKING:
    from zipmoe.doctor.finding import Finding

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    path: Annotated[
        Path, typer.Argument(metavar="[PATH]", help="A packed store, or where stores will be.", show_default="here")
    ] = Path(),
    runtime_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", envvar="ZIPMOE_RUNTIME_DIR", help="Where the services' sockets go.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Checks whether this machine can serve well, and names a remedy for each problem.

    The exit code is 1 if something does not work at all. A possible improvement is only a warning.
    """
    from zipmoe.doctor.finding import Verdict

    findings = list(_examine(path, runtime_dir))
    failed = any(finding.verdict is Verdict.FAIL for finding in findings)
    if json_output:
        print_json({"fit": not failed, "findings": [finding._asdict() for finding in findings]})
    else:
        _print(findings)
    if failed:
        raise typer.Exit(FAILURE_EXIT_CODE)


def _examine(path: Path, runtime_dir: Path | None) -> list[Finding]:
    from zipmoe.doctor.gpu import check_gpu
    from zipmoe.doctor.linears import check_linears
    from zipmoe.doctor.memory import check_memory
    from zipmoe.doctor.processes import check_processes
    from zipmoe.doctor.processor import check_libraries, check_operating_system, check_processor
    from zipmoe.doctor.storage import check_storage

    expert_files = len(list(path.glob("experts-*.bin"))) if path.is_dir() else 0
    return [
        *check_processor(),
        *check_libraries(),
        check_linears(),
        check_operating_system(),
        *check_storage(path),
        *check_memory(),
        *check_processes(runtime_dir, expert_files),
        *check_gpu(),
    ]


def _print(findings: list[Finding]) -> None:
    from rich.text import Text

    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        line = Text(f"{finding.verdict.value:<4}", style=_STYLES[finding.verdict.value])
        line.append(f"  {finding.name:<{width}}  {finding.found}", style="default")
        out().print(line, soft_wrap=True)
        if finding.advice:
            out().print(Text(f"{'':<{width + 8}}{finding.advice}", style="dim"), soft_wrap=True)
