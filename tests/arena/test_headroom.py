"""Memory limits are found whatever the version and the nesting of control groups."""

import pytest

from zipmoe.arena.headroom import MemoryHeadroom, memory_headroom
from zipmoe.errors import BudgetInfeasible, ResourceExhausted

GIB = 1 << 30


@pytest.fixture
def proc(tmp_path):
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text("MemTotal:       8388608 kB\nMemFree: 1 kB\nMemAvailable:   4194304 kB\n")
    return folder


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_without_control_groups_only_the_machine_counts(proc):
    assert memory_headroom(proc) == MemoryHeadroom(8 * GIB, 4 * GIB, None, None)


def test_version_2_takes_the_tightest_of_all_ancestors(proc, tmp_path):
    mount = tmp_path / "cgroup"
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    (proc / "self" / "mountinfo").write_text(f"30 29 0:26 / {mount} rw,nosuid - cgroup2 cgroup2 rw\n")
    stat = f"anon 5\ninactive_file {GIB // 4}\nactive_file {GIB // 4}\n"
    group(mount / "a", memory__max=f"{2 * GIB}\n", memory__current=f"{GIB}\n", memory__stat=stat)
    group(mount / "a" / "b", memory__max="max\n", memory__current=f"{GIB}\n", memory__stat=stat)
    headroom = memory_headroom(proc)
    assert (headroom.limit_bytes, headroom.limit_free_bytes) == (2 * GIB, 2 * GIB - GIB // 2)


def test_version_1_is_read_and_its_no_limit_is_none(proc, tmp_path):
    mount = tmp_path / "memory"
    (proc / "self" / "cgroup").write_text("4:memory:/job\n3:cpuset:/\n0::/\n")
    (proc / "self" / "mountinfo").write_text(
        f"31 23 0:28 / {tmp_path} rw - tmpfs tmpfs rw\n"
        f"35 31 0:32 / {mount} rw - cgroup cgroup rw,memory\n"
        f"36 31 0:33 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu\n"
    )
    unlimited = {"memory__limit_in_bytes": "9223372036854771712\n", "memory__usage_in_bytes": "0\n"}
    group(mount, **unlimited)
    group(mount / "job", **unlimited)
    assert memory_headroom(proc).limit_bytes is None
    group(
        mount / "job",
        memory__limit_in_bytes=f"{GIB}\n",
        memory__usage_in_bytes=f"{GIB}\n",
        memory__stat="inactive_file 7\ntotal_inactive_file 100\ntotal_active_file 20\n",
    )
    headroom = memory_headroom(proc)
    assert (headroom.limit_bytes, headroom.limit_free_bytes) == (GIB, 120)


def test_inside_a_container_the_mount_begins_at_the_own_group(proc, tmp_path):
    mount = tmp_path / "cgroup"
    (proc / "self" / "cgroup").write_text("0::/docker/abc\n")
    (proc / "self" / "mountinfo").write_text(f"30 29 0:26 /docker/abc {mount} ro - cgroup2 cgroup rw\n")
    group(mount, memory__max=f"{GIB}\n", memory__current="0\n")
    assert memory_headroom(proc).limit_bytes == GIB


def test_this_machine_can_be_read():
    headroom = memory_headroom()
    assert 0 < headroom.available_bytes <= headroom.total_bytes
    headroom.require(4096, "a page")


@pytest.mark.parametrize(
    ("nbytes", "error", "text"),
    [
        (101, BudgetInfeasible, "this machine has 100 bytes"),
        (61, BudgetInfeasible, "limited to 60 bytes"),
        (51, ResourceExhausted, "50 bytes of memory are available"),
        (41, ResourceExhausted, "40 bytes are left"),
    ],
)
def test_each_limit_refuses_with_its_own_number(nbytes, error, text):
    with pytest.raises(error, match=f"the arena needs {nbytes} bytes, .*{text}"):
        MemoryHeadroom(100, 50, 60, 40).require(nbytes, "the arena")
    MemoryHeadroom(100, 50, 60, 40).require(40, "the arena")
