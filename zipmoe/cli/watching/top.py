"""`zipmoe top`: draws the current activity of the services at regular intervals."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zipmoe.cli.console import JsonFlag, out, print_json
from zipmoe.errors import InvalidRequest, Unavailable

if TYPE_CHECKING:
    from zipmoe.cli.watching.readings import Snapshot

_LEAST_INTERVAL_S = 0.05


def top(
    endpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ENDPOINT]...",
            help="HOST:PORT of the services' metrics.  [default: those of the runtime directory, else ports 9101-9103]",
            show_default=False,
        ),
    ] = None,
    runtime_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", envvar="ZIPMOE_RUNTIME_DIR", help="Where the services' sockets are.")
    ] = None,
    interval: Annotated[float, typer.Option(metavar="SECONDS", help="From one picture to the next.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one picture, after one interval, and end.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Shows residency by layer, hit rates, disk and recover rates and tokens a second, until Ctrl-C.

    If stdout is no terminal, or with --json, one picture is printed, as with --once.
    """
    from zipmoe.cli.watching.metrics_endpoints import metrics_endpoints
    from zipmoe.cli.watching.readings import Readings, take_snapshot
    from zipmoe.process.runtime import runtime_directory

    if interval < _LEAST_INTERVAL_S:
        raise InvalidRequest(f"an interval of {interval} s is less than {_LEAST_INTERVAL_S} s")
    if endpoints:
        asked = {endpoint: endpoint for endpoint in endpoints}
    else:
        asked = metrics_endpoints(runtime_directory(runtime_dir))
    before = take_snapshot(asked)
    _require_one(before, asked)
    if not (once or json_output) and out().is_terminal:
        _draw_until_interrupted(before, asked, interval)
        return
    time.sleep(interval)
    readings = Readings.of(before, take_snapshot(asked))
    if json_output:
        print_json(readings.to_json())
    else:
        from zipmoe.cli.watching.top_view import view

        out().print(view(readings, out().width, out().height))


def _draw_until_interrupted(before: Snapshot, asked: dict[str, str], interval_s: float) -> None:
    from rich.live import Live

    from zipmoe.cli.watching.readings import Readings, take_snapshot
    from zipmoe.cli.watching.top_view import view

    after = before  # rates are 0 at first
    try:
        with Live(console=out(), screen=True, auto_refresh=False) as live:
            while True:
                live.update(view(Readings.of(before, after), out().width, out().height), refresh=True)
                time.sleep(interval_s)
                before, after = after, take_snapshot(asked)
    except KeyboardInterrupt:
        return


def _require_one(snapshot: Snapshot, asked: dict[str, str]) -> None:
    if len(snapshot.down) == len(asked):
        raise Unavailable(
            "; ".join(snapshot.down.values()),
            next_step="start the services with `zipmoe up STORE`, or name the ENDPOINTs of their metrics",
        )
