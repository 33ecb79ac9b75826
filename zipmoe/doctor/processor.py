"""Checks processor, native kernels, libraries and operating system."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zipmoe.calibration.identity import cpu_model
from zipmoe.doctor.finding import Finding, fail, ok, warn
from zipmoe.errors import UnsupportedModel, ZipMoeError
from zipmoe.model.torch_version import check_torch

FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vbmi", "amx_bf16", "asimd", "bf16", "i8mm", "sve")
"""Processor features that ZipMoE's or torch's kernels use, by the names of /proc/cpuinfo."""

TRANSFORMERS_MINOR = "5.23"
POPULATE_WRITE = (5, 14)
MEMFD_SEALS = (3, 17)
COLLAPSE = (6, 1)


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[Finding]:
    """Checks the cores and the kernels that run on the cores."""
    present = cpu_features(cpuinfo)
    named = " ".join(name for name in FEATURES if name in present) or "none that matter"
    yield ok("processor", f"{cpu_model(cpuinfo)}, {len(os.sched_getaffinity(0))} usable cores; features: {named}")
    yield check_kernels()


def check_kernels() -> Finding:
    """Checks the native kernels and the chosen backend."""
    try:
        from zipmoe.kernels.backends import backend, backends
    except (ImportError, AttributeError, OSError) as error:
        return fail("kernels", str(error), "run `make setup`, or install the wheel for this platform")
    try:
        chosen = backend()
    except ZipMoeError as error:
        return fail("kernels", error.message, "unset ZIPMOE_KERNELS, or name one of them")
    found = f"{chosen}, of {', '.join(backends())}"
    if chosen == "scalar":
        return warn("kernels", found, "use a processor with AVX2 or NEON: recovery is several times slower without")
    if chosen != backends()[0]:
        return warn("kernels", found, "unset ZIPMOE_KERNELS: it forces a slower backend than this processor has")
    return ok("kernels", found)


def check_libraries() -> Iterator[Finding]:
    """Checks the versions of Python, torch and transformers by metadata, because imports take seconds."""
    yield (
        ok("python", platform.python_version())
        if sys.version_info >= (3, 11)
        else fail("python", platform.python_version(), "install Python 3.11 or newer")
    )
    for name, wanted in (("torch", ""), ("transformers", TRANSFORMERS_MINOR)):
        try:
            found = version(name)
        except PackageNotFoundError:
            yield fail(name, "not installed", f"install {name}; the router cannot compute without it")
            continue
        if name == "torch":
            yield check_installed_torch(found)
        elif found.startswith(wanted):
            yield ok(name, found)
        else:
            yield warn(name, found, f"install {name} {wanted}.*: its internals change with every minor version")


def check_installed_torch(found: str) -> Finding:
    """Checks the version of torch that transformers needs."""
    try:
        check_torch()
    except UnsupportedModel as error:
        return fail("torch", found, error.diagnostics())
    return ok("torch", found)


def check_operating_system(release: str | None = None) -> Finding:
    """Checks the version of the operating system's kernel."""
    release = platform.release() if release is None else release
    number = kernel_version(release)
    if platform.system() != "Linux" or number < MEMFD_SEALS:
        return fail("kernel", f"{platform.system()} {release}", "use Linux 5.14 or newer")
    if number < POPULATE_WRITE:
        return warn("kernel", release, "Linux 5.14 or newer fills arenas faster and seals them against late writers")
    return ok("kernel", release)


def kernel_version(release: str) -> tuple[int, ...]:
    """Parses major and minor version of a kernel release; fewer numbers if the release has fewer."""
    digits = release.partition("-")[0].split(".")
    return tuple(int(part) for part in digits[:2] if part.isdigit())


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Reads the features of the first processor; none if the file cannot be read."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return next(
        (set(line.partition(":")[2].split()) for line in lines if line.lower().startswith(("flags", "features"))), set()
    )
