"""Describes the machine that figures were measured on."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from zipmoe import __version__
from zipmoe.bench.native_zstd import zstd_version
from zipmoe.kernels import backends as kernel_backends

_CPU_FIELDS = ("model name", "Model", "Hardware", "CPU part")


def describe_machine() -> dict[str, object]:
    """Describes processor, kernels and libraries, JSON-ready. `load_1m` is the load average of the last minute."""
    described: dict[str, object] = {
        "cpu": _cpu(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1m": os.getloadavg()[0],
        "kernels": kernel_backends.backends(),
        "kernel": kernel_backends.backend(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "zipmoe": __version__,
        "numpy": version("numpy"),
        "zstd": zstd_version(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        described["torch"] = torch.__version__
    return described


def _cpu() -> str:
    """Returns the name of the processor, as far as the system reports it; ARM kernels report little."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}
    board = Path("/proc/device-tree/model")
    told = [fields[name] for name in _CPU_FIELDS if name in fields]
    if not told and board.exists():
        told = [board.read_text(encoding="utf-8", errors="replace").rstrip("\0")]
    return told[0] if told else platform.processor() or platform.machine()
