from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from zipmoe.cli.chart import HEIGHT, WIDTH, chart, charts, nice_ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (3.1, 7.9, [3, 4, 5, 6, 7, 8]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (2, 2, [2, 2.4]),
    ],
)
def test_ticks_are_round_and_enclose_the_range(low: float, high: float, ticks: list[float]) -> None:
    got = nice_ticks(low, high)
    assert got[0] <= low and got[-1] >= high
    assert len(got) >= 2
    if low != high:
        assert got == pytest.approx(ticks)


def test_a_chart_is_well_formed_and_holds_its_points() -> None:
    svg = chart("a < b", "GiB", "ms", {"one": [(1, 0), (2, 100)], "two": [(1, 50), (2, 50)]})
    root = ET.fromstring(charts([svg, svg]))
    assert (root.get("width"), root.get("height")) == (str(WIDTH), str(2 * HEIGHT))
    name = "{http://www.w3.org/2000/svg}"
    lines = root.findall(f"{name}svg/{name}polyline")
    assert len(lines) == 4
    points = [tuple(map(float, point.split(","))) for point in (lines[0].get("points") or "").split()]
    assert points[0][0] < points[1][0] and points[0][1] > points[1][1]
    assert "a < b" in {text.text for text in root.iter(f"{name}text")}


def test_one_point_is_a_chart_too() -> None:
    ET.fromstring(chart("t", "x", "y", {"line": [(3.0, 0.0)]}))
