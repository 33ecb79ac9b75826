"""A pytest plugin: everything that loads the kernels gets those of an emulated aarch64 machine.

    python -m pytest -p tests.kernels.emulated.plugin tests/kernels/test_planes.py

It has to come before anything imports `zipmoe.kernels`, as `-p` does.
"""

from __future__ import annotations

import atexit
import ctypes
import platform
from typing import Any

import pytest

from tests.kernels.emulated.library import EmulatedLibrary, RecordingAddress
from tests.kernels.emulated.machine import build
from zipmoe import buffer

KERNELS = "libzipmoe_kernels.so"
real_library = ctypes.CDLL
emulated = EmulatedLibrary(build().runner)


def load(name: Any, *arguments: Any, **keywords: Any) -> Any:
    """`ctypes.CDLL`, but for the kernels."""
    if name is not None and str(name).endswith(KERNELS):
        return emulated
    return real_library(name, *arguments, **keywords)


ctypes.CDLL = load  # type: ignore[assignment, misc]
buffer.Address = RecordingAddress  # type: ignore[misc]
atexit.register(emulated.close)


def pytest_report_header() -> str:
    """Says in the nested run's output what it ran on."""
    from zipmoe.kernels import backends as kernel_backends

    return f"kernels: {', '.join(kernel_backends.backends())}, emulated on {platform.machine()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out tests whose kernels would be those of this machine, or get addresses of this process."""
    for item in items:
        if item.get_closest_marker("own_memory"):
            item.add_marker(pytest.mark.skip(reason="hands structures with addresses of this process to the kernels"))
        if item.get_closest_marker("own_process"):
            item.add_marker(pytest.mark.skip(reason="starts a process, which has this machine's kernels"))
