"""Draws line charts as SVG files that any browser opens, without a library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from zipmoe.errors import InvalidRequest

Point = tuple[float, float]

WIDTH, HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 40, 44
_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8d6b94", "#c77b30", "#555555", "#c9a800", "#3aa6a0")
_TICKS = 5


def chart(title: str, x_label: str, y_label: str, lines: Mapping[str, Sequence[Point]]) -> str:
    """Draws a line chart with a common x axis and a y axis from 0.

    Args:
        title: text above the chart.
        x_label: text below the x axis, with the unit.
        y_label: text above the y axis, with the unit.
        lines: points by name of the line, at least one line. Points are finite, in ascending x, with y >= 0.

    Returns:
        An `<svg>` element of `WIDTH` x `HEIGHT`.
    """
    points = [point for line in lines.values() for point in line]
    x_ticks = nice_ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = nice_ticks(0.0, max(y for _, y in points))
    x_low, x_high, y_high = x_ticks[0], x_ticks[-1], y_ticks[-1]

    def place(point: Point) -> str:
        x = _LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        y = HEIGHT - _BOTTOM - point[1] / y_high * (HEIGHT - _TOP - _BOTTOM)
        return f"{x:.1f},{y:.1f}"

    parts = [_text(WIDTH / 2, 16, title, "middle", bold=True), _text(8, _TOP - 10, y_label, "start")]
    parts.append(_text(WIDTH - _RIGHT, HEIGHT - 8, x_label, "end"))
    for tick in y_ticks:
        x, y = place((x_low, tick)).split(",")
        parts.append(f'<path d="M{x} {y}H{WIDTH - _RIGHT}" stroke="#dddddd"/>')
        parts.append(_text(_LEFT - 6, float(y) + 4, f"{tick:g}", "end"))
    for tick in x_ticks:
        x, y = place((tick, 0.0)).split(",")
        parts.append(_text(float(x), float(y) + 16, f"{tick:g}", "middle"))
    for index, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        way = " ".join(map(place, line))
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(WIDTH - _RIGHT, _TOP + 14 * index, name, "end", colour=colour))
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">\n{body}\n</svg>'


def charts(svgs: Sequence[str]) -> str:
    """Stacks charts of equal size and returns the content of an SVG file."""
    moved = [svg.replace("<svg ", f'<svg y="{index * HEIGHT}" ', 1) for index, svg in enumerate(svgs)]
    height = len(svgs) * HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n' + "\n".join(moved) + "\n</svg>\n"
    )


def check_svg_name(path: Path) -> None:
    """Checks that the name of a plot ends in .svg; InvalidRequest otherwise."""
    if path.suffix.lower() != ".svg":
        raise InvalidRequest(f"plots are SVG files, not {path.name!r}", next_step="name a file that ends in .svg")


def nice_ticks(low: float, high: float) -> list[float]:
    """Lists about five round numbers that enclose a range; at least two."""
    span = high - low if high > low else abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / _TICKS))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if span / (factor * magnitude) <= _TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [tick * step for tick in range(first, max(last, first + 1) + 1)]


def _text(x: float, y: float, text: str, anchor: str, *, colour: str = "#222222", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(text)}</text>'
