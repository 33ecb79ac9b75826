"""Where a command writes: results on stdout, everything that accompanies them on stderr."""

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
"""The flag that every verb with a result has."""


@cache
def out() -> Console:
    """The console of results; tables in a pipe are not squeezed into 80 columns."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


@cache
def err() -> Console:
    """The console of progress, notes and tables beside a result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def waiting(what: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Shows on a terminal that something is being waited for.

    Yields:
        A function that takes what is being waited for by now.
    """
    if quiet:
        yield lambda newest: None
        return
    with err().status(what) as status:
        yield status.update


def print_json(result: Mapping[str, Any]) -> None:
    """Prints a result as one line of JSON, and flushes it, for a program that reads along."""
    sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def facts(title: str, rows: Mapping[str, object]) -> Table:
    """Makes a table of names and values."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Makes a table with a header."""
    from rich.table import Table

    result = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        result.add_column(column, overflow="fold")
    for row in rows:
        result.add_row(*(str(value) for value in row))
    return result
