"""The memory cgroup in which budgets are shown to hold: real where this machine allows, version 2 on a drawn tree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory_cgroup import CgroupUsage, MemoryCgroup, Version1, Version2, memory_cgroup
from tests.benchmarks.real_cgroup import real_cgroup
from zipmoe.errors import Unavailable

MIB = 1 << 20
HOLD_64_MIB = "import sys; held = bytearray(64 << 20); print('held', flush=True); sys.stdin.read()"


def start(cgroup: MemoryCgroup, code: str) -> subprocess.Popen[bytes]:
    process = cgroup.popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    return process


class TestReal:
    def test_what_a_command_holds_is_counted(self) -> None:
        with real_cgroup(256 * MIB) as cgroup:
            with start(cgroup, HOLD_64_MIB) as process:
                assert process.stdout is not None and process.stdout.readline() == b"held\n"
                usage = cgroup.usage()
            assert process.returncode == 0
        assert 64 * MIB <= usage.peak_held_bytes <= usage.peak_bytes <= 256 * MIB
        assert usage.oom_kills == 0
        assert not cgroup.path.exists()

    def test_a_command_that_wants_more_than_the_limit_is_killed_and_that_is_told(self) -> None:
        with real_cgroup(32 * MIB) as cgroup:
            with start(cgroup, HOLD_64_MIB) as process:
                process.wait()
            assert process.returncode == -signal.SIGKILL
            usage = cgroup.usage()
        assert usage.oom_kills == 1
        assert usage.peak_bytes <= 32 * MIB

    def test_what_is_left_at_the_end_is_killed(self) -> None:
        with real_cgroup(256 * MIB) as cgroup:
            process = start(cgroup, HOLD_64_MIB)
            assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with process:
            assert process.wait() == -signal.SIGKILL

    def test_the_command_line_reports_and_passes_the_exit_code_on(self) -> None:
        with real_cgroup(256 * MIB):
            pass
        module = [sys.executable, "-m", "benchmarks.memory_cgroup", "256MiB", "--"]
        ran = subprocess.run(
            [*module, sys.executable, "-c", "raise SystemExit(3)"], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 3
        assert ran.stderr.startswith("peak ") and "of 256.00 MiB" in ran.stderr


class DrawnTree:
    """A process and a cgroup tree of version 2, as plain files."""

    def __init__(self, folder: Path, own: str, handing_down: tuple[str, ...], root: str = "/") -> None:
        self.mount, self.process = folder / "mount", folder / "process"
        self.process.mkdir()
        (self.process / "cgroup").write_text(f"0::{own}\n")
        (self.process / "mountinfo").write_text(f"30 1 0:9 {root} {self.mount} rw - cgroup2 cgroup2 rw\n")
        place = self.mount / os.path.relpath(own, root)
        place.mkdir(parents=True)
        for each in (place, *place.parents):
            (each / "cgroup.procs").write_text("")
            (each / "cgroup.controllers").write_text("cpu memory\n")
            (each / "cgroup.subtree_control").write_text("cpu memory\n" if each.name in handing_down else "cpu\n")
            if each == self.mount:
                break
        self.place = place.resolve()

    def cgroup(self) -> MemoryCgroup:
        return memory_cgroup(MIB, self.process)


class TestVersion2:
    def test_it_is_made_in_the_nearest_cgroup_above_that_hands_memory_down(self, tmp_path: Path) -> None:
        tree = DrawnTree(tmp_path, "/user.slice/mine.scope/leaf", ("user.slice", "mine.scope"))
        cgroup = tree.cgroup()
        assert isinstance(cgroup, Version2)
        assert cgroup.path.parent == tree.mount / "user.slice" / "mine.scope"

    def test_a_container_sees_only_its_part_of_the_tree(self, tmp_path: Path) -> None:
        tree = DrawnTree(tmp_path, "/docker/1/mine", ("mount",), root="/docker/1")
        assert tree.cgroup().path.parent == tree.mount

    def test_a_delegated_one_with_only_this_process_is_made_to_hand_memory_down(self, tmp_path: Path) -> None:
        tree = DrawnTree(tmp_path, "/mine.scope", ())
        (tree.place / "cgroup.procs").write_text(f"{os.getpid()}\n")
        assert tree.cgroup().path.parent == tree.place
        assert (tree.place / "cgroup.subtree_control").read_text() == "+memory"
        (leaf,) = tree.place.glob("zipmoe-self-*")
        assert (leaf / "cgroup.procs").read_text() == str(os.getpid())

    def test_one_with_other_processes_is_left_as_it_is(self, tmp_path: Path) -> None:
        tree = DrawnTree(tmp_path, "/mine.scope", ())
        (tree.place / "cgroup.procs").write_text("1\n2\n")
        with pytest.raises(Unavailable, match="holds 2 processes"):
            tree.cgroup()

    def test_limit_and_usage_are_where_the_kernel_has_them(self, tmp_path: Path) -> None:
        cgroup = Version2(tmp_path / "zipmoe", 7 * MIB)
        cgroup.path.mkdir()
        (cgroup.path / "memory.swap.max").write_text("max")
        (cgroup.path / "memory.stat").write_text("anon 100\nfile 900\nshmem 20\npgmajfault 3\n")
        (cgroup.path / "memory.events").write_text("low 0\nhigh 0\nmax 5\noom 1\noom_kill 2\n")
        (cgroup.path / "memory.current").write_text("1020\n")
        cgroup._limit()
        assert (cgroup.path / "memory.max").read_text() == str(7 * MIB)
        assert (cgroup.path / "memory.swap.max").read_text() == "0"
        assert cgroup.usage() == CgroupUsage(7 * MIB, 1020, 120, 3, 2)
        (cgroup.path / "memory.peak").write_text("1500\n")
        assert cgroup.usage().peak_bytes == 1500


def test_a_machine_without_a_memory_controller_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("1:cpu:/\n0::/\n")
    (tmp_path / "mountinfo").write_text("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n")
    with pytest.raises(Unavailable, match="no cgroup controller for memory"):
        memory_cgroup(MIB, tmp_path)


def test_on_a_machine_with_both_versions_the_one_that_has_memory_is_used(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "cgroup.procs").touch()
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "cgroup.controllers").write_text("\n")
    (tmp_path / "cgroup").write_text("4:memory:/\n0::/\n")
    (tmp_path / "mountinfo").write_text(
        f"41 31 0:38 / {tmp_path}/unified rw - cgroup2 cgroup2 rw\n"
        f"35 31 0:32 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n"
    )
    cgroup = memory_cgroup(MIB, tmp_path)
    assert isinstance(cgroup, Version1)
    assert cgroup.path.parent == tmp_path / "memory"
