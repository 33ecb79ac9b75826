from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from zipmoe.arena.headroom import MemoryHeadroom
from zipmoe.doctor import memory
from zipmoe.doctor.finding import Verdict
from zipmoe.doctor.memory import (
    check_available,
    check_cgroup,
    check_huge_pages,
    check_locking,
    check_memory,
    check_sealed_memory,
)

GIB = 1 << 30


def test_every_check_runs_here() -> None:
    names = [finding.name for finding in check_memory()]
    assert names == ["memory", "memory limit", "locked memory", "sealed memory", "huge pages"]


def test_little_memory_is_warned_of() -> None:
    assert check_available(MemoryHeadroom(8 * GIB, 5 * GIB, None, None)).verdict is Verdict.OK
    assert check_available(MemoryHeadroom(8 * GIB, GIB, None, None)).verdict is Verdict.WARN


def test_the_limit_of_the_control_group_is_told() -> None:
    assert check_cgroup(MemoryHeadroom(8 * GIB, 5 * GIB, None, None)).found.startswith("none")
    assert check_cgroup(MemoryHeadroom(8 * GIB, 5 * GIB, 6 * GIB, 5 * GIB)).found == "6.00 GiB, 5.00 GiB of it free"
    assert check_cgroup(MemoryHeadroom(8 * GIB, 5 * GIB, 6 * GIB, GIB)).verdict is Verdict.WARN


@pytest.mark.parametrize(
    ("limit_bytes", "refusal", "verdict"),
    [
        (resource.RLIM_INFINITY, "never asked", Verdict.OK),
        (8 << 20, "EPERM", Verdict.WARN),
        (8 << 20, None, Verdict.OK),
        (1 << 30, "never asked", Verdict.WARN),
    ],
)
def test_a_limit_of_locked_memory_counts_unless_it_can_be_passed(
    limit_bytes: int, refusal: str | None, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (limit_bytes, limit_bytes))

    def lock(address: int, nbytes: int) -> str | None:
        assert refusal != "never asked" and nbytes > limit_bytes
        return refusal

    monkeypatch.setattr(memory.memory_pages, "lock", lock)
    assert check_locking().verdict is verdict


def test_without_memfd_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_sealed_memory().verdict is Verdict.OK

    def refuse(name: str, flags: int) -> int:
        raise OSError(1, os.strerror(1))

    monkeypatch.setattr(memory.os, "memfd_create", refuse)
    assert check_sealed_memory().verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("release", "anonymous", "shared", "to_set"),
    [
        ("6.1.0", "always", "never", []),
        ("6.18.44-fc", "madvise", "advise", []),
        ("6.18.44-fc", "always", "deny", ["shmem_enabled"]),
        ("6.0.19", "always", "never", ["shmem_enabled"]),
        ("5.15.148-tegra", "madvise", "advise", []),
        ("6.1.0", "never", "advise", ["enabled"]),
        ("5.15.148-tegra", "never", "never", ["enabled", "shmem_enabled"]),
    ],
)
def test_huge_pages_are_missed_only_where_this_kernel_gives_none(
    release: str, anonymous: str, shared: str, to_set: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "kernel" / "mm" / "transparent_hugepage"
    folder.mkdir(parents=True)
    (folder / "enabled").write_text("always madvise never\n".replace(anonymous, f"[{anonymous}]"))
    (folder / "shmem_enabled").write_text("always advise never deny\n".replace(shared, f"[{shared}]"))
    finding = check_huge_pages(tmp_path, release)
    assert finding.found == f"anonymous memory: {anonymous}, shared memory: {shared}"
    assert finding.verdict is (Verdict.WARN if to_set else Verdict.OK)
    advised = finding.advice.partition(" (as root)")[0].split("; ")
    assert [command.rpartition("/")[2] for command in advised if command] == to_set


def test_a_kernel_without_huge_pages_is_warned_of(tmp_path: Path) -> None:
    finding = check_huge_pages(tmp_path)
    assert finding.found == "anonymous memory: unknown, shared memory: unknown"
    assert finding.verdict is Verdict.WARN and "echo" not in finding.advice
