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

    monkeypatch.setattr(memory.pages, "lock", lock)
    assert check_locking().verdict is verdict


def test_without_memfd_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_sealed_memory().verdict is Verdict.OK

    def refuse(name: str, flags: int) -> int:
        raise OSError(1, os.strerror(1))

    monkeypatch.setattr(memory.os, "memfd_create", refuse)
    assert check_sealed_memory().verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("setting", "verdict"),
    [("always [advise] never", Verdict.OK), ("always advise [never]", Verdict.WARN), ("", Verdict.WARN)],
)
def test_huge_pages_of_shared_memory_are_looked_up(setting: str, verdict: Verdict, tmp_path: Path) -> None:
    folder = tmp_path / "kernel" / "mm" / "transparent_hugepage"
    folder.mkdir(parents=True)
    (folder / "enabled").write_text("[always] madvise never\n")
    (folder / "shmem_enabled").write_text(setting + "\n")
    finding = check_huge_pages(tmp_path)
    assert finding.verdict is verdict
    assert finding.found.startswith("anonymous memory: always")
