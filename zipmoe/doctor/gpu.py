"""Checks the CUDA device, if there is any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zipmoe.doctor.finding import Finding, ok, warn
from zipmoe.errors import ZipMoeError

_PROBE_BYTES = 1 << 20

#: Device nodes of discrete GPUs, of WSL and of Jetson. Without any of these nodes there is no CUDA.
_NODES: Final = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/nvhost-gpu", "/dev/nvgpu")


def has_cuda_hardware() -> bool:
    """Returns whether there is a device node of a GPU that CUDA could use."""
    return any(Path(node).exists() for node in _NODES)


def check_gpu() -> Iterator[Finding]:
    """Checks the CUDA device and its access to arenas. Imports torch only if there is hardware."""
    if not has_cuda_hardware():
        yield ok("cuda", "no device: the model computes on the CPU")
        return
    import torch

    if not torch.cuda.is_available():
        yield warn(
            "cuda", f"a device, but torch {torch.__version__} cannot use it", "install a torch built for its CUDA"
        )
        return
    device = torch.device("cuda", 0)
    yield ok("cuda", f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}")
    yield check_registration(device)


def check_registration(device: object) -> Finding:
    """Tries to register host memory, as is done with arenas for fast copies or reads in place."""
    import torch

    from zipmoe.model.experts.device import RegisteredMemory
    from zipmoe.store.read.aligned_memory import aligned_memory

    assert isinstance(device, torch.device)
    memory = aligned_memory(_PROBE_BYTES)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    try:
        registered = RegisteredMemory(device, tensor.data_ptr(), _PROBE_BYTES, read_only=False)
    except (ZipMoeError, OSError) as error:
        return warn(
            "host memory for cuda", str(error), "experts are copied from pageable memory, at about half the speed"
        )
    how = "read in place" if registered.readable_in_place else "copied from pinned memory"
    registered.close()
    return ok("host memory for cuda", f"can be registered; experts are {how}")
