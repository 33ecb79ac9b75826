"""Checks the size and the limits of memory, and the kernel features that arenas need."""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

from zipmoe.arena import memory_pages
from zipmoe.arena.headroom import MemoryHeadroom, memory_headroom
from zipmoe.doctor.finding import Finding, fail, ok, warn
from zipmoe.doctor.processor import COLLAPSE, kernel_version
from zipmoe.system_error import reason_of

LITTLE_BYTES = 2 << 30
_PAGE_BYTES = 4096
_MOST_TRIED_BYTES = 64 << 20


def check_memory(sys: Path = Path("/sys")) -> Iterator[Finding]:
    """Checks sizes and limits, and tries the kernel features that arenas need."""
    headroom = memory_headroom()
    yield check_available(headroom)
    yield check_cgroup(headroom)
    yield check_locking()
    yield check_sealed_memory()
    yield check_huge_pages(sys)


def check_available(headroom: MemoryHeadroom) -> Finding:
    """Checks the available memory."""
    found = f"{_gib(headroom.available_bytes)} available of {_gib(headroom.total_bytes)}"
    if headroom.available_bytes < LITTLE_BYTES:
        return warn("memory", found, "free some: the three processes alone take about 1 GiB without any expert")
    return ok("memory", found)


def check_cgroup(headroom: MemoryHeadroom) -> Finding:
    """Checks the limit of the control group, which a budget must not exceed."""
    if headroom.limit_bytes is None or headroom.limit_free_bytes is None:
        return ok("memory limit", "none: no control group limits this process")
    found = f"{_gib(headroom.limit_bytes)}, {_gib(headroom.limit_free_bytes)} of it free"
    if headroom.limit_free_bytes < LITTLE_BYTES:
        return warn("memory limit", found, "raise the limit of the container: --memory-budget has to fit below it")
    return ok("memory limit", found)


def check_locking() -> Finding:
    """Checks the limit of locked memory. Tries to lock more than a small limit: CAP_IPC_LOCK lifts the limit."""
    soft_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft_bytes == resource.RLIM_INFINITY:
        return ok("locked memory", "RLIMIT_MEMLOCK is unlimited")
    advice = "raise it (`ulimit -l unlimited`, LimitMEMLOCK=infinity, --ulimit memlock=-1): swap can evict experts now"
    found = f"RLIMIT_MEMLOCK is {soft_bytes >> 10} KiB"
    if soft_bytes >= _MOST_TRIED_BYTES:
        return warn("locked memory", found, advice)
    tried_bytes = soft_bytes // _PAGE_BYTES * _PAGE_BYTES + _PAGE_BYTES
    with mmap.mmap(-1, tried_bytes) as mapping:
        if memory_pages.lock(memory_pages.address_of(mapping), tried_bytes) is not None:
            return warn("locked memory", found, advice)
    return ok("locked memory", f"{found}, but this process may lock more")


def check_sealed_memory() -> Finding:
    """Tries the memory of an arena: shared memory without a name (memfd), sealed against resizing."""
    try:
        descriptor = os.memfd_create("zipmoe-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, _PAGE_BYTES)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        finally:
            os.close(descriptor)
    except OSError as error:
        return fail(
            "sealed memory", f"memfd: {reason_of(error)}", "allow memfd_create and sealing (seccomp, old kernel)"
        )
    return ok("sealed memory", "memfd and seals work")


def check_huge_pages(sys: Path = Path("/sys"), release: str | None = None) -> Finding:
    """Checks whether the kernel provides huge pages, by the table in `zipmoe.arena.huge_pages`.

    Dense weights and KV cache are anonymous memory, arenas are shared memory.
    """
    folder = sys / "kernel" / "mm" / "transparent_hugepage"
    anonymous, shared = (_chosen(folder / name) for name in ("enabled", "shmem_enabled"))
    found = f"anonymous memory: {anonymous or 'unknown'}, shared memory: {shared or 'unknown'}"
    if not (anonymous and shared):
        return warn("huge pages", found, "use a kernel that has them: the model computes up to a tenth faster")
    collapses = kernel_version(platform.release() if release is None else release) >= COLLAPSE
    commands = [f"echo madvise > {folder / 'enabled'}"] if anonymous == "never" else []
    if shared == "deny" or (shared == "never" and not collapses):
        commands.append(f"echo advise > {folder / 'shmem_enabled'}")
    if commands:
        advice = f"{'; '.join(commands)} (as root): the model computes up to a tenth faster"
        return warn("huge pages", found, advice)
    return ok("huge pages", found)


def _chosen(path: Path) -> str:
    """Returns the word in brackets of a kernel setting; empty if the setting does not exist."""
    try:
        words = path.read_text().split()
    except OSError:
        return ""
    return next((word[1:-1] for word in words if word.startswith("[")), "")


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.2f} GiB"
