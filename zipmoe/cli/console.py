"""Consoles of a command: results go to stdout, progress and notes to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPE_COLUMNS: Final = 200

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result, and any error, as one JSON object.")]
"""The flag `--json` of every verb that has a result."""


@cache
def out() -> Console:
    """Returns the console of results. In a pipe, tables may be wider than 80 columns."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


@cache
def err() -> Console:
    """Returns the console of progress, notes and tables that accompany a result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def waiting(task: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Shows a status message on a terminal while the block runs.

    Yields:
        A function that replaces the message.
    """
    if quiet:
        yield lambda newest: None
        return
    with err().status(task) as status:
        yield status.update


def print_json(result: Mapping[str, Any]) -> None:
    """Prints a result as one line of JSON and flushes stdout, for programs that read while the command runs."""
    sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def facts(title: str, rows: Mapping[str, object]) -> Table:
    """Makes a table of names and values."""
    from rich.text import Text

    result = _table(title, header=False)
    result.add_column(style="dim")
    result.add_column(overflow="fold")
    for name, value in rows.items():
        result.add_row(name, Text(str(value)))
    return result


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Makes a table with a header."""
    from rich.text import Text

    result = _table(title, header=True)
    for column in columns:
        result.add_column(column, overflow="fold")
    for row in rows:
        result.add_row(*(Text(str(value)) for value in row))
    return result


def _table(title: str, *, header: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    # Text objects, here and in the cells: in a plain string, the brackets of a path would be markup.
    return Table(
        title=Text(title), title_justify="left", title_style="bold", show_header=header, box=None, pad_edge=False
    )
