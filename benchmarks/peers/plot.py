"""The rows as a picture: for each model and batch, time per token over the budget, and bytes beside Belady's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.row import PeerRow
from benchmarks.peers.systems.system import FLOOR, SYSTEMS


def plot(rows: Sequence[PeerRow], path: Path) -> None:
    """Draws; the suffix of the path says in which format. Only rows of the shortest prompts, which are for decoding.

    Args:
        rows: at least one, all with a time per token.
        path: Overwritten.
    """
    # Not pyplot: a figure by itself has no window system to look for and no global state.
    from matplotlib.figure import Figure

    shortest = min(row.case.prompt_tokens for row in rows)
    decoding = [row for row in rows if row.case.prompt_tokens == shortest]
    groups = sorted({(row.case.model, row.case.batch) for row in decoding})
    figure = Figure(figsize=(13, 4 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), 2, squeeze=False)
    for (model, batch), (times, reads) in zip(groups, axes, strict=True):
        group = [row for row in decoding if (row.case.model, row.case.batch) == (model, batch)]
        _draw(times, group, "tpot_ms", "limit_ms", 1.0)
        _draw(reads, group, "bytes_per_token", "belady_bytes_per_token", 1e-6)
        times.set_yscale("log")
        times.set_ylabel("ms a token")
        reads.set_ylabel("MB read a token")
        times.set_title(f"{model}, batch {batch}: bar is measured, line the physical limit")
        reads.set_title(f"{model}, batch {batch}: bar is measured, line Belady's")
        times.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _draw(axes: object, rows: Sequence[PeerRow], figure: str, bound: str, factor: float) -> None:
    budgets = list(dict.fromkeys(row.case.budget for row in rows))
    names = [name for name in SYSTEMS if any(row.case.system == name for row in rows)]
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        own = [row for row in rows if row.case.system == name and row[figure] is not None]
        x = [budgets.index(row.case.budget) + (place - (len(names) - 1) / 2) * width for row in own]
        heights = [(row[figure] or 0.0) * factor for row in own]
        colour = "C7" if name == FLOOR else f"C{place % 7}"
        axes.bar(x, heights, width, label=name, color=colour)  # type: ignore[attr-defined]
        for left, row in zip(x, own, strict=True):
            spread, limit = row.figures[figure], row[bound]
            if spread is not None:
                ends = [spread.least * factor, spread.most * factor]
                axes.plot([left, left], ends, color="black", linewidth=1)  # type: ignore[attr-defined]
            if limit is not None:
                ends = [left - width / 2, left + width / 2]
                axes.plot(ends, [limit * factor] * 2, color="black", linewidth=2)  # type: ignore[attr-defined]
    axes.set_xticks(range(len(budgets)), [_label(budget) for budget in budgets])  # type: ignore[attr-defined]
    axes.grid(axis="y", alpha=0.3)  # type: ignore[attr-defined]


def _label(budget: str) -> str:
    return f"{budget} GiB" if budget[0].isdigit() else f"everything {budget}"
