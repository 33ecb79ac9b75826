"""Runs a command in a memory cgroup of so many bytes, and tells what it used.

    python -m benchmarks.memory_cgroup 4GiB -- zipmoe up STORE --memory-budget 4GiB

Works with cgroups of version 1 and 2, as root or where a cgroup has been delegated: the new one is made inside the own
one (version 2: inside the nearest one above that hands the memory controller down). Without rights on any, for instance

    systemd-run --user --scope -p Delegate=yes python -m benchmarks.memory_cgroup ...

gives one. Swap counts as memory, so nothing can hide there. Pages are charged to whoever touched them first: files that
others had in the page cache before are not counted, and pages that the kernel can drop at any time are counted in the
peak but not in the least that was needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from zipmoe.cli.serving.child import die_with_parent
from zipmoe.cli.size import format_size, parse_size
from zipmoe.errors import Unavailable
from zipmoe.system_error import reason_of

_SAMPLE_S = 0.02
_END_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class CgroupUsage:
    """What the processes in a cgroup used.

    Attributes:
        limit_bytes: what they were allowed.
        peak_bytes: the most that was charged, droppable file pages included: near the limit it says little.
        peak_held_bytes: the most that could not be dropped, anonymous and shared memory, by samples every 20 ms.
        major_faults: page faults that had to read from disk.
        oom_kills: processes that the kernel killed for want of memory.
    """

    limit_bytes: int
    peak_bytes: int
    peak_held_bytes: int
    major_faults: int
    oom_kills: int

    def __str__(self) -> str:
        return (
            f"peak {format_size(self.peak_bytes)} of {format_size(self.limit_bytes)}, of it held at most "
            f"{format_size(self.peak_held_bytes)}; {self.major_faults} major faults, {self.oom_kills} OOM kills"
        )


class MemoryCgroup(ABC):
    """A memory cgroup that lives as long as the `with` block; what is left in it at the end is killed."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        """Use `memory_cgroup`."""
        self.path = path
        self.limit_bytes = limit_bytes
        self._peak_held_bytes = 0
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="memory-cgroup", daemon=True)

    def __enter__(self) -> Self:
        try:
            self.path.mkdir()
            self._limit()
        except OSError as error:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            raise Unavailable(f"cannot make a memory cgroup {self.path}: {reason_of(error)}") from error
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()
        self._empty()
        self.path.rmdir()

    def popen(self, command: Sequence[str | Path], **settings: Any) -> subprocess.Popen[Any]:
        """Starts a command in the cgroup; it is killed if this process goes."""
        enter = [sys.executable, "-m", "benchmarks.memory_cgroup", "enter", str(os.getpid()), str(self.path)]
        settings["env"] = {**(settings.get("env") or os.environ)}
        root = str(Path(__file__).parents[1])
        settings["env"]["PYTHONPATH"] = os.pathsep.join(filter(None, [root, settings["env"].get("PYTHONPATH")]))
        return subprocess.Popen([*enter, *map(str, command)], **settings)

    def usage(self) -> CgroupUsage:
        """What has been used so far."""
        self._peak_held_bytes = max(self._peak_held_bytes, self._held_bytes())
        return CgroupUsage(
            self.limit_bytes, self._peak_bytes(), self._peak_held_bytes, self._major_faults(), self._oom_kills()
        )

    @abstractmethod
    def _limit(self) -> None:
        """Sets the limit, of memory and swap together."""

    @abstractmethod
    def _held_bytes(self) -> int: ...

    @abstractmethod
    def _peak_bytes(self) -> int: ...

    @abstractmethod
    def _major_faults(self) -> int: ...

    @abstractmethod
    def _oom_kills(self) -> int: ...

    def _number(self, name: str) -> int:
        return int((self.path / name).read_text())

    def _fields(self, name: str) -> dict[str, int]:
        pairs = (line.split() for line in (self.path / name).read_text().splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs}

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._peak_held_bytes = max(self._peak_held_bytes, self._held_bytes())

    def _empty(self) -> None:
        """Kills what is left; only processes that this block has started can be there."""
        for _ in range(int(_END_TIMEOUT_S / _SAMPLE_S)):
            left = (self.path / "cgroup.procs").read_text().split()
            if not left:
                return
            for process_id in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process_id), signal.SIGKILL)
            threading.Event().wait(_SAMPLE_S)
        raise Unavailable(f"processes in {self.path} do not end")


class Version1(MemoryCgroup):
    """A cgroup of version 1, where the memory controller has a tree of its own."""

    def _limit(self) -> None:
        (self.path / "memory.limit_in_bytes").write_text(str(self.limit_bytes))
        with_swap = self.path / "memory.memsw.limit_in_bytes"
        if with_swap.exists():
            with_swap.write_text(str(self.limit_bytes))

    def _held_bytes(self) -> int:
        stat = self._fields("memory.stat")
        return stat["total_rss"] + stat.get("total_shmem", 0)

    def _peak_bytes(self) -> int:
        return self._number("memory.max_usage_in_bytes")

    def _major_faults(self) -> int:
        return self._fields("memory.stat")["total_pgmajfault"]

    def _oom_kills(self) -> int:
        return self._fields("memory.oom_control").get("oom_kill", 0)


class Version2(MemoryCgroup):
    """A cgroup of version 2."""

    def _limit(self) -> None:
        (self.path / "memory.max").write_text(str(self.limit_bytes))
        swap = self.path / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")

    def _held_bytes(self) -> int:
        stat = self._fields("memory.stat")
        return stat["anon"] + stat["shmem"]

    def _peak_bytes(self) -> int:
        """Kernels before 5.19 do not keep it: then the most of what was held and what is charged now."""
        peak = self.path / "memory.peak"
        return self._number(peak.name) if peak.exists() else max(self._number("memory.current"), self._peak_held_bytes)

    def _major_faults(self) -> int:
        return self._fields("memory.stat")["pgmajfault"]

    def _oom_kills(self) -> int:
        return self._fields("memory.events")["oom_kill"]


def memory_cgroup(limit_bytes: int, process: Path = Path("/proc/self")) -> MemoryCgroup:
    """Finds out what kind of memory cgroup can be made, and where.

    Args:
        limit_bytes: of memory and swap together.
        process: of /proc, whose cgroup the new one is made in.

    Returns:
        The cgroup, to be entered with `with`; it does not exist yet.

    Raises:
        Unavailable: there is no memory controller, or no right to use it.
    """
    name = f"zipmoe-{os.getpid()}-{threading.get_native_id()}"
    own = {}
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    for line in (process / "mountinfo").read_text().splitlines():
        mount, _, filesystem = line.partition(" - ")
        root, point = mount.split()[3:5]
        kind, _, options = filesystem.split()[:3]
        if kind == "cgroup" and "memory" in own and "memory" in options.split(","):
            return Version1(_writable([_place(Path(point), root, own["memory"])]) / name, limit_bytes)
        if kind == "cgroup2" and "" in own and "memory" in _words(Path(point) / "cgroup.controllers"):
            place = _place(Path(point), root, own[""])
            above = [place, *place.parents][: len(place.parts) - len(Path(point).parts) + 1]
            handed_down = [each for each in above if "memory" in _words(each / "cgroup.subtree_control")]
            return Version2(_writable(handed_down or [_made_to_hand_down(place)]) / name, limit_bytes)
    raise Unavailable("there is no cgroup controller for memory here")


def _place(point: Path, root: str, own: str) -> Path:
    """Where the own cgroup is below a mount point that may show only a part of the tree."""
    return point / os.path.relpath(own, root) if own.startswith(root) else point


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _writable(places: Sequence[Path]) -> Path:
    for place in places:
        if os.access(place, os.W_OK) and os.access(place / "cgroup.procs", os.W_OK):
            return place
    raise Unavailable(
        f"no right to make a cgroup in {' or '.join(map(str, places))}",
        next_step="run as root, or under `systemd-run --user --scope -p Delegate=yes`",
    )


def _made_to_hand_down(place: Path) -> Path:
    """Makes a delegated cgroup hand the memory controller down, which it may only while it holds no process itself."""
    members = _words(place / "cgroup.procs")
    if members != [str(os.getpid())]:
        raise Unavailable(
            f"{place} does not hand the memory controller down, and holds {len(members)} processes",
            next_step="run under `systemd-run --user --scope -p Delegate=yes`",
        )
    leaf = place / f"zipmoe-self-{os.getpid()}"
    try:
        leaf.mkdir()
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
        (place / "cgroup.subtree_control").write_text("+memory")
    except OSError as error:
        raise Unavailable(f"cannot use the memory controller in {place}: {reason_of(error)}") from error
    return place


def _enter(parent_pid: int, path: Path, command: list[str]) -> None:
    """Moves this process into a cgroup and becomes the command."""
    die_with_parent(parent_pid)
    (path / "cgroup.procs").write_text(str(os.getpid()))
    os.execvp(command[0], command)


def main(arguments: list[str]) -> int:
    """Runs what the command line says; returns the command's exit code."""
    if arguments[:1] == ["enter"]:
        _enter(int(arguments[1]), Path(arguments[2]), arguments[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("limit", type=parse_size)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    with memory_cgroup(options.limit) as cgroup:
        process = cgroup.popen(options.command)
        # Ctrl-C reaches the command as well, which is to end by it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        exit_code = process.wait()
        usage = cgroup.usage()
    print(json.dumps(asdict(usage)) if options.json else usage, file=sys.stderr)
    return exit_code if exit_code >= 0 else 128 - exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
