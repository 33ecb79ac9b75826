"""The picture of a measurement."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from zipmoe.bench.codec_rounds import CodecRow
from zipmoe.bench.plot import check_plotting, plot
from zipmoe.errors import InvalidRequest

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def row(codec: str, data: str, ratio: float) -> CodecRow:
    return CodecRow(codec, data, 1, ratio, 0.66, 5.0, 1.0, 0.5, 2.0, True, 5.0, 1.0)


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    path = tmp_path / "codecs.png"
    rows = [row("memcpy", "a", 1.0), row("zstd", "a", 0.67), row("zstd", "b", 0.7), row("cascade", "b", 0.69)]
    plot(rows, "a machine", path)
    assert path.read_bytes().startswith(PNG_MAGIC)


def test_nothing_to_plot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="a codec that compresses"):
        plot([row("memcpy", "a", 1.0)], "a machine", tmp_path / "codecs.png")


@pytest.mark.parametrize(("name", "problem"), [("plot.svg", "end in .png"), ("no/plot.png", "no folder")])
def test_where_a_plot_cannot_go_is_refused_beforehand(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        check_plotting(tmp_path / name)


def test_without_matplotlib_the_problem_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidRequest, match="needs matplotlib") as caught:
        check_plotting(tmp_path / "plot.png")
    assert caught.value.diagnostics() == "pip install 'zipmoe[plot]'"
