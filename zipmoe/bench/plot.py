"""Draws the ratio of codecs against the speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zipmoe.bench.codec_rounds import MEMCPY, CodecRow
from zipmoe.errors import InvalidRequest

_MARKERS = "osD^vPX*<>hp8d"


def check_plotting(path: Path) -> None:
    """Checks that a result can be plotted; called before a measurement.

    Raises:
        InvalidRequest: matplotlib is not installed, `path` does not end in .png, or its folder does not exist.
    """
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise InvalidRequest(
            "a plot needs matplotlib, which is not installed", next_step="pip install 'zipmoe[plot]'"
        ) from error
    if path.suffix.lower() != ".png":
        raise InvalidRequest(f"a plot is written as PNG, so its name has to end in .png, not {path.name!r}")
    if not path.parent.is_dir():
        raise InvalidRequest(f"there is no folder {path.parent} to write the plot to")


def plot(rows: Sequence[CodecRow], title: str, path: Path) -> None:
    """Draws a point for each codec and sample, and lines for the limit and the memcpy of each sample.

    Only rows with the smallest number of threads are drawn.

    Args:
        rows: measured rows.
        title: name of the machine.
        path: the PNG file to write; overwritten.

    Raises:
        InvalidRequest: no row has a ratio below 1.
    """
    # Not pyplot: a bare figure needs no window system and has no global state.
    from matplotlib.figure import Figure

    threads = min(row.threads for row in rows)
    # Rows that compress nothing would stretch the axis.
    shown = [row for row in rows if row.threads == threads and row.ratio < 1]
    if not shown:
        raise InvalidRequest("a plot needs a codec that compresses")
    samples = list(dict.fromkeys(row.data for row in shown))
    codecs = list(dict.fromkeys(row.codec for row in shown))
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for row in shown:
        axes.plot(
            row.recover_gbps,
            row.ratio,
            marker=_MARKERS[codecs.index(row.codec) % len(_MARKERS)],
            color=f"C{samples.index(row.data) % 10}",
            linestyle="none",
        )
    for index, data in enumerate(samples):
        limit = next(row.limit for row in shown if row.data == data)
        axes.axhline(limit, color=f"C{index % 10}", linestyle=":", label=f"limit (8+H)/16, {data}")
    for index, codec in enumerate(codecs):
        axes.plot([], [], marker=_MARKERS[index % len(_MARKERS)], color="black", linestyle="none", label=codec)
    for row in rows:
        if row.threads == threads and row.codec == MEMCPY:
            axes.axvline(row.recover_gbps, color=f"C{samples.index(row.data) % 10}", linestyle="--", linewidth=0.8)
    axes.set_xlabel(f"recovery, GB/s of bf16, {threads} thread{'s' if threads > 1 else ''} (dashed: memcpy)")
    axes.set_ylabel("stored bytes / bf16 bytes")
    axes.set_title(title)
    axes.set_xlim(left=0)
    axes.legend(fontsize="small", loc="best")
    figure.savefig(path, dpi=120)
