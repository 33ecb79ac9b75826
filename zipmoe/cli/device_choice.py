"""Resolves the device `auto` without an import of torch into this process."""

from __future__ import annotations

import subprocess

from zipmoe.doctor.gpu import has_cuda_hardware
from zipmoe.errors import InvalidRequest
from zipmoe.process.python_command import python_command


def resolve_device(device: str) -> str:
    """Returns the device that the router will compute on, so that all three services get the same setting.

    Args:
        device: `cpu`, `cuda` or `auto`.

    Returns:
        `cpu` or `cuda`.

    Raises:
        InvalidRequest: `device` has another value.

    Cost: for `auto` with CUDA hardware, a process that imports torch, some seconds; otherwise nothing.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidRequest(f"device {device!r} is not cpu, cuda or auto")
    if device != "auto":
        return device
    if not has_cuda_hardware():
        return "cpu"
    question = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)"
    answer = subprocess.run(python_command("-c", question), capture_output=True, check=False)
    return "cuda" if answer.returncode == 0 else "cpu"
