"""`zipmoe bench ffn`: measures the linears of experts on the CPU."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from zipmoe.cli.console import JsonFlag, out, print_json, table, waiting
from zipmoe.cli.numbers import parse_counts
from zipmoe.cli.size import parse_size

if TYPE_CHECKING:
    from zipmoe.bench.linear_rounds import FfnRow

_SHAPE = "2048x1408"


def ffn(
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="NxK",
            help="Outputs and inputs of a matrix; may be repeated.  [default: 2048x1408]",
            show_default=False,
        ),
    ] = None,
    m: Annotated[str, typer.Option(help="Numbers of rows of inputs, with commas.")] = "1,4,16,64,512",
    threads: Annotated[str, typer.Option(help="Numbers of threads, with commas.")] = "1",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; the figures are medians.")] = 9,
    working_set: Annotated[
        str, typer.Option(help="Bytes of the bf16 matrices that each kernel runs through; 1 for one matrix, in cache.")
    ] = "64MiB",
    json_output: JsonFlag = False,
) -> None:
    """Measures linears on bf16, on compressed weights and on in-memory forms beside torch's, and compares every bit.

    Times are processor time with one thread, wall time with more. `floor` is the time to read the stored weights at the
    bandwidth measured in the same rounds. `differ` counts outputs that differ from torch's, which happens if torch's
    summation order is unknown; a router leaves such linears to torch. ZIPMOE_KERNELS chooses the kernels.
    """
    from zipmoe.bench.linear_rounds import measure_linears
    from zipmoe.bench.machine import describe_machine
    from zipmoe.kernels.linear import LinearShape

    sizes = [(rows, *_size(text)) for text in shapes or [_SHAPE] for rows in parse_counts("m", m)]
    thread_counts = parse_counts("threads", threads)
    with waiting("making data", quiet=json_output) as show:
        rows = measure_linears(
            [LinearShape(*size) for size in sizes], thread_counts, rounds, show, parse_size(working_set)
        )
    machine = describe_machine()
    if json_output:
        print_json({"machine": machine, "rows": [asdict(row) for row in rows]})
    else:
        _print(f"{machine['cpu']}, kernels {machine['kernel']}, torch {machine['torch']}", rows)


def _size(text: str) -> tuple[int, int]:
    from zipmoe.errors import InvalidRequest

    n, cross, k = text.lower().partition("x")
    if not (cross and n.isdecimal() and k.isdecimal() and int(n) and int(k)):
        raise InvalidRequest(f"shape has to be outputs x inputs, for example {_SHAPE}, not {text!r}")
    return int(n), int(k)


def _print(title: str, rows: list[FfnRow]) -> None:
    columns = (
        "kernel",
        "m",
        "n x k",
        "threads",
        "ms",
        "torch",
        "/ torch",
        "/ bf16",
        "ratio",
        "convert",
        "floor",
        "GMAC/s",
        "sgemm",
        "differ",
        "order",
    )
    lines = [
        (
            row.kernel,
            row.m,
            f"{row.n} x {row.k}",
            row.threads,
            f"{row.ms:.3f}",
            f"{row.torch_ms:.3f}",
            f"{row.vs_torch:.2f}",
            f"{row.vs_bf16:.2f}",
            f"{row.ratio:.4f}",
            "" if row.convert_gbps is None else f"{row.convert_gbps:.1f}",
            f"{row.floor_ms:.3f}",
            f"{row.gmacs:.1f}",
            "" if row.sgemm_gmacs is None else f"{row.sgemm_gmacs:.1f}",
            row.differing_outputs,
            row.order or "unknown",
        )
        for row in rows
    ]
    out().print(table(f"ms a matrix: {title}", columns, lines))
