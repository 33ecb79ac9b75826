"""`zipmoe bench`: measures this machine."""

from __future__ import annotations

import typer

from zipmoe.cli.bench_codec import codec

bench = typer.Typer(
    name="bench", no_args_is_help=True, help="Measures codecs and kernels on this machine: every row beside its rivals."
)
bench.command()(codec)
