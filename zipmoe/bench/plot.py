"""Ratio against speed, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zipmoe.bench.codec_rounds import MEMCPY, CodecRow
from zipmoe.errors import InvalidRequest

_MARKERS = "osD^vPX*<>hp8d"


def check_plotting(path: Path) -> None:
    """Checks before anything is measured that the result can be plotted.

    Raises:
        InvalidRequest: matplotlib is not installed, `path` is not a PNG's name, or there is no such folder.
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
    """Draws one point a codec and sample, for the smallest number of threads, and every sample's limit and memcpy.

    Args:
        rows: what was measured.
        title: names the machine.
        path: where the PNG goes. Overwritten.

    Raises:
        InvalidRequest: no row has compressed anything.
    """
    # Not pyplot: a figure by itself has no window system to look for and no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    threads = min(row.threads for row in rows)
    # What compresses nothing would only squeeze the others together.
    shown = [row for row in rows if row.threads == threads and row.ratio < 1]
    if not shown:
        raise InvalidRequest("a plot needs a codec that compresses")
    samples = list(dict.fromkeys(row.data for row in shown))
    codecs = list(dict.fromkeys(row.codec for row in shown))
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
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
