"""The report: tables on the terminal, a JSON file, plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.peers.disk import read_ahead_kb
from benchmarks.peers.plot import plot
from benchmarks.peers.record import PeerCase, Record
from benchmarks.peers.row import PeerRow, ratios, rows_of
from benchmarks.peers.systems.system import FLOOR, SYSTEMS
from benchmarks.peers.work import PeerWork

OURS = "zipmoe"


def report(
    records: Sequence[Record], works: Mapping[str, PeerWork], limit_bytes: Callable[[PeerCase], int], folder: Path
) -> list[PeerRow]:
    """Prints the tables and writes `peers.json`, `peers.svg` and `peers.png` into a folder."""
    rows = rows_of(records, works, limit_bytes)
    console = Console(width=None if Console().is_terminal else 240)
    for model in works:
        console.print(_table(f"{model}: medians over rounds", [row for row in rows if row.case.model == model]))
    console.print(_ratio_table(records))
    for row in rows:
        if row.problem:
            console.print(f"{_place(row.case)} {row.case.system}: {row.problem}", markup=False)
    folder.mkdir(parents=True, exist_ok=True)
    ahead = {model: read_ahead_kb(work.folder) for model, work in works.items()}
    (folder / "peers.json").write_text(
        json.dumps({"read_ahead_kb": ahead, "rows": [row.as_json() for row in rows]}, indent=1) + "\n"
    )
    measured = [row for row in rows if row["tpot_ms"] is not None]
    if measured:
        for suffix in ("svg", "png"):
            plot(measured, folder / f"peers.{suffix}")
    return rows


def _table(title: str, rows: Sequence[PeerRow]) -> Table:
    names = (
        "budget", "batch", "prompt", "system", "TTFT s", "/ limit", "TPOT ms", "step ms", "limit ms", "step / limit",
        "tokens/s", "MB a token", "Belady MB", "peak GiB", "held GiB", "disk GB/s", "as stock", "rounds",
    )  # fmt: skip
    table = Table(title=title)
    for name in names:
        table.add_column(
            name, justify="left" if name == "system" else "right", no_wrap=name in ("system", "budget", "step / limit")
        )
    for row in sorted(rows, key=lambda row: (row.case.prompt_tokens, row.case.batch, row.case.budget)):
        case = row.case
        equal = "-" if row.problem and not row.rounds else "yes" if row.tokens_match else f"{row.choices_equal:.1%}"
        table.add_row(
            case.budget, str(case.batch), str(case.prompt_tokens), case.system,
            _number(row["ttft_ms"], 1e-3, 2), _number(row["ttft_vs_limit"], 1, 2), _number(row["tpot_ms"], 1, 0),
            _number(row["step_ms"], 1, 0), _number(row["limit_ms"], 1, 0), str(row.figures["vs_limit"] or "-"),
            _number(row["tokens_per_s"], 1, 2), _number(row["bytes_per_token"], 1e-6, 1),
            _number(row["belady_bytes_per_token"], 1e-6, 1), f"{row.peak_bytes / (1 << 30):.2f}",
            f"{row.held_bytes / (1 << 30):.2f}", _number(row["disk_gbps"], 1, 2), equal, str(row.rounds),
        )  # fmt: skip
    return table


def _ratio_table(records: Sequence[Record]) -> Table:
    table = Table(title=f"{OURS} over each other system: median of the rounds' ratios (least-most)")
    for name in ("case", "system", "TPOT", "TTFT", "tokens/s"):
        table.add_column(name)
    tpot = ratios(records, OURS, lambda record: record.tpot_ms)
    ttft = ratios(records, OURS, lambda record: record.ttft_ms)
    speed = ratios(records, OURS, lambda record: record.tokens_per_s)
    for case, value in ttft.items():
        if case.system != FLOOR:
            table.add_row(_place(case), case.system, str(tpot.get(case, "-")), str(value), str(speed[case]))
    return table


def explain(systems: Sequence[str]) -> str:
    """What the systems are."""
    return "\n".join(f"  {name:14} {SYSTEMS[name].about}" for name in systems)


def _place(case: PeerCase) -> str:
    budget = case.budget if not case.budget[0].isdigit() else f"{case.budget} GiB"
    return f"{case.model}, {budget}, batch {case.batch}, {case.prompt_tokens} tokens"


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"
