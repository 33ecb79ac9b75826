"""Which device `auto` stands for, without importing torch into a process that does not need it."""

from __future__ import annotations

import subprocess

from zipmoe.cli.python_command import python_command
from zipmoe.doctor.gpu import has_cuda_hardware
from zipmoe.errors import InvalidRequest


def resolve_device(device: str) -> str:
    """Says whether the router will compute on the CPU or with CUDA, so that all three services can be told alike.

    Args:
        device: `cpu`, `cuda` or `auto`.

    Returns:
        `cpu` or `cuda`.

    Raises:
        InvalidRequest: another name.

    Cost: nothing where there is no such hardware; else a process that imports torch, some seconds.
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
