"""Identifies the machine of a measurement, because measurements of another machine do not apply."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zipmoe.errors import NotFound
from zipmoe.store.format.checksum import xxh3, xxh3_of_file
from zipmoe.system_error import reason_of


@dataclass(frozen=True)
class MachineIdentity:
    """Properties of a machine that measurements depend on. A machine that differs in any property is another machine.

    Attributes:
        cpu: model of the processor.
        cores: cores that this process may run on.
        kernel: release of the operating system's kernel.
        torch: version of torch; empty if torch is not installed.
        kernels: backend of the native kernels and checksum of the kernel library; empty if not built.
        disk: file system and device that hold the store.
    """

    cpu: str
    cores: int
    kernel: str
    torch: str
    kernels: str
    disk: str

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the machine."""
        return f"{xxh3(json.dumps(asdict(self), sort_keys=True).encode()):016x}"


INSTRUCTION_SETTINGS = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")
"""Environment variables that change the order in which torch and its libraries sum."""


def machine_and_versions() -> list[str]:
    """Returns everything outside a model that the bits of its computation may depend on, but the number of threads."""
    versions = [version("zipmoe"), version("transformers"), version("torch")]
    settings = [os.environ.get(name, "") for name in INSTRUCTION_SETTINGS]
    return [*versions, kernel_library(), cpu_model(), *settings]


def machine_identity(path: Path) -> MachineIdentity:
    """Identifies this machine and the disk that holds `path`.

    Raises:
        NotFound: there is no such file or directory.
    """
    return MachineIdentity(
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        torch=_version("torch"),
        kernels=kernel_library(),
        disk=disk_name(path),
    )


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Names the processor, by model name on x86, by implementer, part and revision on ARM."""
    fields = dict(line.split(":", 1) for line in _lines(cpuinfo) if ":" in line)
    values = {name.strip(): value.strip() for name, value in fields.items()}
    if model := values.get("model name"):
        return f"{model} ({platform.machine()})"
    parts = [values[name] for name in ("CPU implementer", "CPU part", "CPU revision") if name in values]
    return " ".join([platform.machine(), *parts])


def disk_name(path: Path, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> str:
    """Names the file system of a path, the device and, where the kernel knows, the model of the disk.

    Raises:
        NotFound: there is no such file or directory.
    """
    try:
        device = os.stat(path).st_dev
    except OSError as error:
        raise NotFound(f"cannot stat {path}: {reason_of(error)}") from error
    number = f"{os.major(device)}:{os.minor(device)}"
    kind, source = "unknown", number
    for line in _lines(proc / "self" / "mountinfo"):
        fields, _, tail = line.partition(" - ")
        if fields.split()[2] == number:
            kind, source = tail.split()[:2]
    block = sys / "dev" / "block" / number
    candidates = (block / "device" / "model", block / ".." / "device" / "model")
    model = next((" ".join(lines[0].split()) for each in candidates if (lines := _lines(each))), "")
    return f"{kind} on {source}" + (f" ({model})" if model else "")


def kernel_library() -> str:
    """Names the backend of the native kernels and the checksum of their library; empty if they are not built."""
    try:
        from zipmoe import kernels
        from zipmoe.kernels import backends as kernel_backends
        from zipmoe.kernels.library import LIBRARY_NAME
    except ImportError:  # not built
        return ""
    places = (Path(folder) / LIBRARY_NAME for folder in kernels.__path__)
    library = next(place for place in places if place.exists())
    return f"{kernel_backends.backend()} {xxh3_of_file(library):016x}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _lines(path: Path) -> list[str]:
    """Returns the lines of a file of the kernel; none where the kernel does not provide the file."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
