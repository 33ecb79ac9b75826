"""Describes the machine that figures were measured on."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version

from zipmoe import __version__
from zipmoe.bench.native_zstd import zstd_version
from zipmoe.calibration.identity import cpu_model
from zipmoe.kernels import backends as kernel_backends


def describe_machine() -> dict[str, object]:
    """Describes processor, kernels and libraries, JSON-ready. `load_1m` is the load average of the last minute."""
    described: dict[str, object] = {
        "cpu": cpu_model(),
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
