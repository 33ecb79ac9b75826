"""The arena itself: geometry, sealing, read-only views, and what happens when memory or permission is missing."""

import ctypes
import errno
import fcntl
import gc
import mmap
import os
import resource
import signal
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from zipmoe.arena import arena as arena_module
from zipmoe.arena import memory_pages
from zipmoe.arena.arena import Arena, ArenaView
from zipmoe.arena.headroom import MemoryHeadroom
from zipmoe.errors import BudgetInfeasible, InvalidRequest, NotFound, ResourceExhausted, SlotLeased

SLOT = 8192


@pytest.fixture
def arena():
    with closing(Arena.create("store", SLOT, 4, lock=True)) as made:
        yield made


@pytest.fixture
def view(arena):
    with closing(open_view(arena)) as made:
        yield made


def environment() -> dict[str, str]:
    """For a child that imports what this process imports, wherever it was started."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def arena_descriptors() -> int:
    """Descriptors of arenas in this process."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum("memfd:zipmoe-" in os.readlink(link) for link in links if os.path.islink(link))


def open_view(arena: Arena) -> ArenaView:
    fd = arena.read_only_fd()
    try:
        return ArenaView.open(fd, arena.slot_bytes, arena.slot_count)
    finally:
        os.close(fd)


def test_what_the_owner_writes_is_what_a_view_reads(arena, view):
    written = [bytes([index]) * SLOT for index in range(4)]
    for index, content in enumerate(written):
        arena.slot(index)[:] = content
    assert [bytes(view.slot(index)) for index in range(4)] == written


def test_a_new_arena_is_all_zeroes_and_wholly_present(arena):
    assert all(bytes(arena.slot(index)) == bytes(SLOT) for index in range(4))
    assert os.fstat(arena._fd).st_blocks * 512 == arena.nbytes


def test_the_address_is_that_of_slot_zero(arena, view):
    arena.slot(0)[:5] = b"hello"
    assert ctypes.string_at(view.address, 5) == ctypes.string_at(arena.address, 5) == b"hello"
    assert view.address % mmap.PAGESIZE == 0


@pytest.mark.parametrize("index", [-1, 4, 1 << 40])
def test_a_slot_that_does_not_exist_is_refused(arena, index):
    with pytest.raises(NotFound, match="4 slots"):
        arena.slot(index)


@pytest.mark.parametrize(
    ("slot_bytes", "slot_count"), [(0, 1), (-4096, 1), (4095, 1), (6000, 1), (4096, 0), (4096, -1), (4096, 1 << 32)]
)
def test_a_malformed_geometry_is_refused(slot_bytes, slot_count):
    with pytest.raises(InvalidRequest):
        Arena.create("store", slot_bytes, slot_count, lock=True)


def test_epochs_differ_and_are_positive_63_bit_numbers():
    epochs = set()
    for _ in range(8):
        with closing(Arena.create("store", 4096, 1, lock=False)) as arena:
            epochs.add(arena.epoch)
    assert len(epochs) == 8
    assert all(0 < epoch < 1 << 63 for epoch in epochs)


class TestAReader:
    def test_cannot_write_through_its_view(self, view):
        with pytest.raises(TypeError):
            view.slot(0)[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            np.frombuffer(view.slot(0), np.uint8)[0] = 1

    def test_cannot_make_its_mapping_writable(self, view):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        assert libc.mprotect(view.address, SLOT, mmap.PROT_READ | mmap.PROT_WRITE) == -1
        assert ctypes.get_errno() == errno.EACCES

    def test_cannot_write_to_its_descriptor(self, arena):
        fd = arena.read_only_fd()
        try:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(fd, b"x", 0)
            with pytest.raises(PermissionError):
                mmap.mmap(fd, arena.nbytes)
        finally:
            os.close(fd)

    def test_cannot_write_even_through_a_descriptor_reopened_for_writing(self, arena):
        fd = arena.read_only_fd()
        writable = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                os.pwrite(writable, b"x", 0)
            with pytest.raises(PermissionError):
                mmap.mmap(writable, arena.nbytes)
        finally:
            os.close(writable)
            os.close(fd)

    def test_is_killed_by_a_store_through_the_address(self):
        """The hardware refuses it: in a process of its own, because that is what SIGSEGV ends."""
        program = """
import ctypes, os, resource
from zipmoe.arena.arena import Arena, ArenaView
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
arena = Arena.create("store", 4096, 1, lock=True)
view = ArenaView.open(arena.read_only_fd(), 4096, 1)
ctypes.memset(arena.address, 1, 1)
print(ctypes.string_at(view.address, 1).hex(), flush=True)
ctypes.memset(view.address, 2, 1)
"""
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, env=environment()
        )
        assert (ended.stdout, ended.returncode) == ("01\n", -signal.SIGSEGV)


class TestSeals:
    def test_the_size_cannot_change_and_no_seal_can_be_added(self, arena):
        for size in (0, arena.nbytes * 2):
            with pytest.raises(PermissionError):
                os.ftruncate(arena._fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(arena._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)

    def test_an_old_kernel_without_the_future_write_seal_gets_the_others(self, monkeypatch):
        monkeypatch.setattr(arena_module, "_F_SEAL_FUTURE_WRITE", 1 << 20)
        with closing(Arena.create("store", 4096, 1, lock=True)) as arena:
            seals = fcntl.fcntl(arena._fd, fcntl.F_GET_SEALS)
            assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            with closing(open_view(arena)) as view:
                assert bytes(view.slot(0)) == bytes(4096)


class TestAViewRefuses:
    def test_a_writable_descriptor(self, arena):
        with pytest.raises(InvalidRequest, match="writable"):
            ArenaView.open(arena._fd, SLOT, 4)

    def test_another_geometry(self, arena):
        fd = arena.read_only_fd()
        try:
            for slot_bytes, slot_count in ((SLOT, 3), (SLOT, 5), (SLOT * 2, 4), (0, 4), (SLOT, -4)):
                with pytest.raises(InvalidRequest, match="32768 bytes"):
                    ArenaView.open(fd, slot_bytes, slot_count)
        finally:
            os.close(fd)

    def test_a_file_that_its_owner_could_truncate(self, tmp_path):
        path = tmp_path / "unsealed"
        path.write_bytes(bytes(4096))
        with path.open("rb") as file, pytest.raises(InvalidRequest, match="not sealed"):
            ArenaView.open(file.fileno(), 4096, 1)


class TestClosing:
    @pytest.mark.parametrize("build", ["memoryview", "slice", "numpy", "torch"])
    def test_is_refused_while_anything_looks_into_it(self, arena, build):
        view = open_view(arena)
        arena.slot(0)[:4] = b"\x01\x02\x03\x04"
        if build == "torch":
            torch = pytest.importorskip("torch")
            with pytest.warns(UserWarning, match="not writable"):
                looking = torch.frombuffer(view.slot(0), dtype=torch.uint8)
        else:
            slot = view.slot(0)
            looking = {"memoryview": slot, "slice": slot[:8], "numpy": np.frombuffer(slot, np.uint8)}[build]
            del slot
        with pytest.raises(SlotLeased, match="still in use"):
            view.close()
        assert bytes(looking[:4]) == b"\x01\x02\x03\x04"
        del looking
        gc.collect()
        view.close()

    def test_twice_is_allowed_and_everything_after_it_is_refused(self, arena):
        view = open_view(arena)
        view.close()
        view.close()
        for use in (lambda: view.slot(0), lambda: view.address):
            with pytest.raises(InvalidRequest, match="is closed"):
                use()
        arena.close()
        arena.close()
        with pytest.raises(InvalidRequest, match="is closed"):
            arena.read_only_fd()

    def test_leaves_the_readers_mapping_intact(self):
        arena = Arena.create("store", 4096, 1, lock=True)
        arena.slot(0)[:] = b"\x5a" * 4096
        with closing(open_view(arena)) as view:
            arena.close()
            assert bytes(view.slot(0)) == b"\x5a" * 4096

    def test_gives_the_descriptors_back(self):
        gc.collect()
        before = arena_descriptors()
        for _ in range(3):
            arena = Arena.create("store", 4096, 1, lock=True)
            open_view(arena).close()
            arena.close()
        Arena.create("forgotten", 4096, 1, lock=True)
        gc.collect()
        assert arena_descriptors() == before


class TestTooLittleMemory:
    def test_more_than_the_machine_has_is_infeasible_and_says_how_much(self):
        with pytest.raises(BudgetInfeasible, match=r"1024 slots of 1099511627776 bytes\) needs 1125899906842624 bytes"):
            Arena.create("store", 1 << 40, 1024, lock=True)

    @pytest.mark.parametrize(
        ("headroom", "error"),
        [
            (MemoryHeadroom(1 << 20, 1 << 19, None, None), ResourceExhausted),
            (MemoryHeadroom(1 << 30, 1 << 30, 1 << 19, 1 << 19), BudgetInfeasible),
            (MemoryHeadroom(1 << 30, 1 << 30, 1 << 21, 1 << 19), ResourceExhausted),
        ],
    )
    def test_no_page_is_touched_before_the_limits_are_known(self, monkeypatch, headroom, error):
        monkeypatch.setattr(arena_module, "memory_headroom", lambda: headroom)
        monkeypatch.setattr(os, "memfd_create", lambda *_: pytest.fail("memory was taken"))
        with pytest.raises(error, match="needs 1048576 bytes"):
            Arena.create("store", 4096, 256, lock=True)

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM])
    def test_a_refusal_of_the_kernel_is_a_clear_error_and_leaves_nothing(self, monkeypatch, code):
        def refuse(*_):
            raise OSError(code, os.strerror(code))

        before = arena_descriptors()
        monkeypatch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(ResourceExhausted, match="needs 4096 bytes, the kernel refused"):
            Arena.create("store", 4096, 1, lock=True)
        assert arena_descriptors() == before


class TestLocking:
    def test_is_reported_when_it_works(self, arena):
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if os.geteuid() != 0 and soft != resource.RLIM_INFINITY and soft < 1 << 20:
            pytest.skip(f"RLIMIT_MEMLOCK is {soft} bytes")
        assert arena.locked
        assert arena.lock_error is None

    def test_that_is_not_allowed_is_reported_with_the_limit_and_the_arena_works(self):
        # As an unprivileged user with a limit of one page, in a process of its own.
        program = """
import os, resource
from zipmoe.arena.arena import Arena
resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))
if os.geteuid() == 0:
    os.setuid(65534)
arena = Arena.create("store", 1 << 20, 1, lock=True)
arena.slot(0)[0] = 7
print(arena.locked, arena.lock_error, arena.slot(0)[0], sep="|")
"""
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True, env=environment()
        )
        assert ended.stdout == "False|ENOMEM: cannot allocate memory (RLIMIT_MEMLOCK is 4096 bytes)|7\n"

    def test_can_be_left_out(self):
        with closing(Arena.create("store", 4096, 1, lock=False)) as arena:
            assert not arena.locked
            assert arena.lock_error == "locking was not asked for"


class _OldLibc:
    """A libc whose kernel does not know MADV_POPULATE_WRITE."""

    def __init__(self, libc):
        self.memset = libc.memset

    @staticmethod
    def madvise(*_):
        ctypes.set_errno(errno.EINVAL)
        return -1


def test_an_old_kernel_is_pre_faulted_by_writing(monkeypatch):
    monkeypatch.setattr(memory_pages, "_libc", _OldLibc(memory_pages._libc))
    memory = mmap.mmap(-1, 1 << 20)
    before = resident_pages()
    memory_pages.populate(memory_pages.address_of(memory), len(memory))
    assert resident_pages() - before >= (1 << 20) // mmap.PAGESIZE
    memory.close()


def resident_pages() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])
