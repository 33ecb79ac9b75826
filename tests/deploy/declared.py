"""Which series the services export, read off their source: no process is needed, and nothing has to be kept in step."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_SUFFIXES = {
    "Counter": ("_total",),
    "CounterMetricFamily": ("_total",),
    "Gauge": ("",),
    "GaugeMetricFamily": ("",),
    "Histogram": ("_bucket", "_sum", "_count"),
    "HistogramMetricFamily": ("_bucket", "_sum", "_count"),
    "Info": ("_info",),
    "InfoMetricFamily": ("_info",),
    # Counters of the brain, by the functions of services/router/experts/brain_metrics.py that make them.
    "_family": ("_total",),
    "_number": ("_total",),
}
_FOREIGN = {
    # prometheus_client's collector of the process itself.
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_cpu_seconds_total",
    "process_start_time_seconds",
    "process_open_fds",
    "process_max_fds",
    # Prometheus' own.
    "up",
    "ALERTS",
}


def _metric_files() -> Iterator[Path]:
    for folder in (_ROOT / "services", _ROOT / "zipmoe" / "rpc", _ROOT / "zipmoe" / "process"):
        yield from sorted(folder.rglob("*.py"))


def declared_series() -> set[str]:
    """Names of all series that the services declare, with the suffixes that Prometheus sees."""
    names = set(_FOREIGN)
    for path in _metric_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _SUFFIXES):
                continue
            if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                base = node.args[0].value.removesuffix("_total")
                names |= {base + suffix for suffix in _SUFFIXES[node.func.id]}
    return names
