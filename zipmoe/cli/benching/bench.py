"""`zipmoe bench`: the group of the verbs that measure this machine and running services."""

from __future__ import annotations

import typer

from zipmoe.cli.benching.bench_codec import codec
from zipmoe.cli.benching.bench_ffn import ffn
from zipmoe.cli.benching.bench_serve import serve

bench = typer.Typer(
    name="bench",
    no_args_is_help=True,
    help="Measures codecs and kernels on this machine, every row beside its rivals; and running services under load.",
)
bench.command()(codec)
bench.command()(ffn)
bench.command()(serve)
