"""Huge pages: taken where the kernel gives them, reported as it reports them, and missed by nobody."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import closing
from pathlib import Path

import pytest

from zipmoe.arena import memory_pages
from zipmoe.arena.arena import Arena, ArenaView
from zipmoe.arena.huge_pages import AddressRange, huge_page_bytes, huge_page_size, prefer_huge_pages
from zipmoe.arena.mapping import AlignedMapping

SIZE = huge_page_size()
TAIL = 12288
MADV_COLLAPSE = 25


class _Refusing:
    """A libc whose kernel refuses one kind of advice."""

    def __init__(self, refused: int, code: int) -> None:
        self._libc, self._refused, self._code = memory_pages._libc, refused, code

    def __getattr__(self, name: str) -> object:
        return getattr(self._libc, name)

    def madvise(self, address: int, nbytes: int, advice: int) -> int:
        if advice != self._refused:
            return int(self._libc.madvise(address, nbytes, advice))
        ctypes.set_errno(self._code)
        return -1


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOMEM, errno.EAGAIN])
def test_an_arena_works_without_huge_pages_and_says_why(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_pages, "_libc", _Refusing(MADV_COLLAPSE, code))
    with closing(Arena.create("store", SIZE + TAIL, 1, lock=False)) as arena:
        if arena.huge_page_bytes:
            pytest.skip("shmem_enabled gives huge pages unasked")
        assert arena.huge_page_error is not None
        assert arena.huge_page_error.startswith(errno.errorcode[code])
        assert bytes(arena.slot(0)) == bytes(SIZE + TAIL)


def test_an_arena_takes_no_more_memory_than_its_slots_and_all_whole_huge_pages_or_tells_why() -> None:
    with closing(Arena.create("store", SIZE + TAIL, 2, lock=False)) as arena:
        assert os.fstat(arena._fd).st_blocks * 512 == arena.nbytes
        assert (arena.huge_page_bytes == 2 * SIZE) == (arena.huge_page_error is None)


def test_a_reader_has_the_huge_pages_of_the_owner() -> None:
    with closing(Arena.create("store", 2 * SIZE, 1, lock=False)) as arena:
        if arena.huge_page_error:
            pytest.skip(f"this kernel gives none: {arena.huge_page_error}")
        arena.slot(0)[:] = b"\x5a" * arena.nbytes
        fd = arena.read_only_fd()
        with closing(ArenaView.open(fd, 2 * SIZE, 1)) as view:
            os.close(fd)
            assert view.huge_page_bytes == view.nbytes
            assert view.slot(0) == arena.slot(0)


@pytest.mark.parametrize("nbytes", [1, TAIL, SIZE, 2 * SIZE + TAIL])
def test_contents_stay(nbytes: int) -> None:
    mapping = AlignedMapping(nbytes)
    mapping.view()[:] = content = os.urandom(nbytes)
    prefer_huge_pages(mapping.place)
    assert mapping.view() == content


@pytest.mark.parametrize("nbytes", [SIZE, SIZE + TAIL, 3 * SIZE])
def test_a_mapping_begins_where_a_huge_page_can(nbytes: int) -> None:
    mapping = AlignedMapping(nbytes)
    assert mapping.address % SIZE == 0
    assert len(mapping.view()) == mapping.place.nbytes == nbytes
    mapping.close()
    assert mapping.closed


def test_smaps_counts_what_lies_in_the_places(tmp_path: Path) -> None:
    smaps = tmp_path / "smaps"
    smaps.write_text(
        "200000-800000 rw-s 00000000 00:01 7   /memfd:zipmoe-e (deleted)\n"
        "Rss:    6144 kB\nAnonHugePages:       0 kB\nShmemPmdMapped:     4096 kB\nVmFlags: rd wr\n"
        "800000-a00000 rw-p 00000000 00:00 0\nAnonHugePages:    2048 kB\nShmemPmdMapped:     0 kB\n"
    )
    assert huge_page_bytes([AddressRange(0x200000, 0x800000)], smaps) == 6 << 20
    assert huge_page_bytes([AddressRange(0x200000, 0x200000)], smaps) == 2 << 20
    assert huge_page_bytes([AddressRange(0x800000, 0x1000)], smaps) == 4096
    assert huge_page_bytes([AddressRange(0xA00000, 0x1000)], smaps) == 0
    assert huge_page_bytes([AddressRange(0x200000, 0x1000)], tmp_path / "none") == 0
