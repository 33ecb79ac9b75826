"""Measures the memory that this process may still take, before any page is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zipmoe.errors import BudgetInfeasible, ResourceExhausted

# cgroup v1 writes "no limit" as the largest page-aligned int64. No machine has nearly as much memory.
_UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True)
class MemoryHeadroom:
    """Memory of the machine, and memory limits of the control groups of this process.

    `total_bytes` and `available_bytes` are the machine's (MemTotal, MemAvailable). `limit_bytes` is the tightest limit
    of a control group. `limit_free_bytes` is the smallest remainder under a limit; page cache counts as free, because
    the kernel drops it first. Both are None without a limit.
    """

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None
    limit_free_bytes: int | None

    def require(self, nbytes: int, purpose: str) -> None:
        """Refuses an allocation that would make the kernel kill a process for lack of memory.

        Args:
            nbytes: size of the allocation.
            purpose: use of the allocation; the error message begins with it.

        Raises:
            BudgetInfeasible: the machine or the control group never has so much memory.
            ResourceExhausted: so much memory is not free at the moment.
        """
        if nbytes > self.total_bytes:
            raise BudgetInfeasible(
                f"{purpose} needs {nbytes} bytes, this machine has {self.total_bytes} bytes of memory",
                next_step="use a machine with more memory",
            )
        if self.limit_bytes is not None and nbytes > self.limit_bytes:
            raise BudgetInfeasible(
                f"{purpose} needs {nbytes} bytes, this control group is limited to {self.limit_bytes} bytes of memory",
                next_step="make it smaller, or raise the memory limit of the container or control group",
            )
        if nbytes > self.available_bytes:
            raise ResourceExhausted(
                f"{purpose} needs {nbytes} bytes, {self.available_bytes} bytes of memory are available at the moment",
                next_step="end other processes and run the same command again",
            )
        if self.limit_free_bytes is not None and nbytes > self.limit_free_bytes:
            raise ResourceExhausted(
                f"{purpose} needs {nbytes} bytes, {self.limit_free_bytes} bytes are left in this control group",
                next_step="end other processes of the control group, or raise its memory limit",
            )


def memory_headroom(proc: Path = Path("/proc")) -> MemoryHeadroom:
    """Reads the machine's memory and the limits of this process's control groups (v1 and v2).

    Args:
        proc: the proc file system; tests pass a directory of their own.
    """
    meminfo = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        meminfo[name] = int(rest.split()[0]) * 1024
    limits = [(limit, limit - usage) for limit, usage in _cgroup_limits(proc)]
    return MemoryHeadroom(
        total_bytes=meminfo["MemTotal"],
        available_bytes=meminfo["MemAvailable"],
        limit_bytes=min((limit for limit, _ in limits), default=None),
        limit_free_bytes=max(0, min(free for _, free in limits)) if limits else None,
    )


def _cgroup_limits(proc: Path) -> Iterator[tuple[int, int]]:
    """Yields (limit, unreclaimable usage) in bytes of each limited control group, from the innermost to the root."""
    for mount_point, folder, is_v2 in _memory_cgroups(proc):
        limit_name = "memory.max" if is_v2 else "memory.limit_in_bytes"
        usage_name = "memory.current" if is_v2 else "memory.usage_in_bytes"
        for group in (folder, *folder.parents):
            limit = _read_number(group / limit_name)
            usage = _read_number(group / usage_name)
            if limit is not None and usage is not None and limit < _UNLIMITED_BYTES:
                yield limit, usage - _page_cache_bytes(group / "memory.stat", prefix="" if is_v2 else "total_")
            if group == mount_point:
                break


def _memory_cgroups(proc: Path) -> Iterator[tuple[Path, Path, bool]]:
    """Yields (mount point, folder of this process's group, is version 2) of each hierarchy that accounts memory."""
    paths = {}
    for line in _lines(proc / "self" / "cgroup"):
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" and not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for line in _lines(proc / "self" / "mountinfo"):
        fields, _, tail = line.partition(" - ")
        root, mount_point = fields.split()[3:5]
        kind, _, options = tail.split()[:3]
        if kind not in paths or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        # In a container the mount often begins at the process's own group. Then the path is relative to that root.
        relative = paths[kind].removeprefix(root) if root != "/" else paths[kind]
        folder = Path(mount_point) / relative.lstrip("/")
        yield Path(mount_point), folder if folder.is_dir() else Path(mount_point), kind == "cgroup2"


def _page_cache_bytes(stat: Path, prefix: str) -> int:
    wanted = {f"{prefix}inactive_file", f"{prefix}active_file"}
    return sum(int(value) for name, _, value in (line.partition(" ") for line in _lines(stat)) if name in wanted)


def _read_number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    """Returns the lines of a kernel file; none if the file does not exist or cannot be read."""
    try:
        return path.read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
