"""`zipmoe bench codec`: measures ratio and speed of the codecs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zipmoe.cli.console import JsonFlag, out, print_json, table, waiting
from zipmoe.cli.numbers import parse_counts
from zipmoe.cli.problem import FAILURE_EXIT_CODE

if TYPE_CHECKING:
    from zipmoe.bench.codec_rounds import CodecRow
    from zipmoe.bench.matrix import MatrixSample

_ROWS, _COLS = 2048, 1408


def codec(
    codecs: Annotated[
        list[str] | None,
        typer.Option(
            "--codec", help="NAME or NAME:PARAMETER=VALUE,...; may be repeated.  [default: all]", show_default=False
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="gaussian, row-scaled, heavy-tailed, or the directory of a store or checkpoint; may be repeated.  "
            "[default: those three]",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[str, typer.Option(help="Numbers of threads, with commas.")] = "1",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; the figures are medians.")] = 9,
    matrices: Annotated[int, typer.Option(help="Matrices of each kind of data: together larger than the caches.")] = 8,
    e_chunks: Annotated[int, typer.Option(help="E-chunks of a matrix, as `pack` cuts it.")] = 4,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw ratio against speed.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Measures codecs beside memcpy and native zstd-1, and compares every recovered byte.

    GB/s are bytes of bf16 divided by the processor time of the busiest thread, which other work on the machine disturbs
    least. `limit` is (8 + H) / 16 for exponents of entropy H. Codecs with blocks of rows are also measured with the
    block size that compresses the data best. ZIPMOE_KERNELS chooses the kernels. The exit code is 1 if a byte differs.
    """
    from zipmoe.bench.codec_rounds import CodecPlan, measure_codecs
    from zipmoe.bench.codec_selection import choose_codecs, with_best_blocks
    from zipmoe.bench.machine import describe_machine
    from zipmoe.bench.plot import check_plotting
    from zipmoe.bench.plot import plot as draw

    chosen = choose_codecs(codecs or [])
    plan = CodecPlan(parse_counts("threads", threads), rounds, e_chunks)
    if plot is not None:
        check_plotting(plot)
    machine = describe_machine()
    rows: list[CodecRow] = []
    with waiting("making data", quiet=json_output) as show:
        for name in data or _kinds():
            sample = _sample(name, matrices)
            rows += measure_codecs(sample, with_best_blocks(chosen, sample), plan, show)
    if plot is not None:
        draw(rows, f"{machine['cpu']}, {machine['kernel']}", plot)
    if json_output:
        print_json({"machine": machine, "rows": [asdict(row) for row in rows]})
    else:
        _print(f"{machine['cpu']}, kernels {machine['kernel']}, {machine['zstd']}", rows)
    if not all(row.exact for row in rows):
        raise typer.Exit(FAILURE_EXIT_CODE)


def _kinds() -> tuple[str, ...]:
    from zipmoe.bench.synthetic import kind_names

    return kind_names()


def _sample(name: str, matrices: int) -> MatrixSample:
    from zipmoe.bench.stored_matrices import find_matrices
    from zipmoe.bench.synthetic import kind_names, synthesise
    from zipmoe.errors import InvalidRequest

    if matrices < 1:
        raise InvalidRequest(f"matrices have to be at least 1, not {matrices}")
    if name in kind_names():
        return synthesise(name, matrices, _ROWS, _COLS)
    return find_matrices(Path(name), matrices)


def _print(title: str, rows: list[CodecRow]) -> None:
    columns = ("data", "codec", "threads", "ratio", "limit", "recover", "encode", "/ memcpy", "/ zstd-1", "exact")
    lines = [
        (
            row.data,
            row.codec,
            row.threads,
            f"{row.ratio:.4f}",
            f"{row.limit:.4f}",
            f"{row.recover_gbps:.2f}",
            f"{row.encode_gbps:.2f}",
            f"{row.vs_memcpy:.2f}",
            f"{row.vs_zstd1:.2f}",
            "yes" if row.exact else "NO",
        )
        for row in rows
    ]
    out().print(table(f"GB/s of bf16 a thread's processor time: {title}", columns, lines))
