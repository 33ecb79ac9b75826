"""Huge pages: one entry of the TLB, one page fault and one segment of a disk read for 2 MiB instead of 4 KiB.

They are taken where the kernel gives them and never asked for in vain: memory without them is as correct, and slower by
a tenth or less. No more memory is taken than with small pages, because only what fills a whole huge page becomes one.

    kernel                   anonymous memory                    shared memory (memfd)
    6.1 and later            unless `enabled` is never           unless `shmem_enabled` is deny
    5.14 to 6.0              unless `enabled` is never           where `shmem_enabled` is advise or more
    before                   not by `prefer_huge_pages`          not by `prefer_huge_pages`
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from zipmoe.arena import memory_pages

_DEFAULT_BYTES = 2 << 20
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_MADV_HUGEPAGE, _MADV_NOHUGEPAGE = 14, 15
_MADV_COLLAPSE = 25  # Linux 6.1
_PIECE_BYTES = 256 << 20  # between two pieces a signal is noticed
_COUNTED = ("AnonHugePages:", "ShmemPmdMapped:")


class AddressRange(NamedTuple):
    """A piece of this process's address space."""

    address: int
    nbytes: int

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.address + self.nbytes


@cache
def huge_page_size() -> int:
    """Bytes of a huge page on this machine; of the usual one where the kernel has none."""
    try:
        return int((_SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return _DEFAULT_BYTES


def prefer_huge_pages(place: AddressRange) -> str | None:
    """Turns the memory of a writable mapping into huge pages, as far as whole ones fit in; contents stay.

    Best before anything of it is touched or allocated: a huge page is then zeroed once, and nothing is copied. A byte
    in each is touched first, because the kernel makes no huge page out of nothing.

    Args:
        place: of a mapping of anonymous or of shared memory, which may be locked or sealed.

    Returns:
        None when the kernel did all that was asked, otherwise what it said first, for the log. Nothing has failed then:
        some of the memory stays in small pages. `huge_page_bytes` tells how much did not.

    Cost: the kernel zeroes the memory, once. Thread: any; the GIL is released.
    """
    step = huge_page_size()
    begin = -(-place.address // step) * step
    end = place.end // step * step
    if begin >= end:
        return None
    errors = [memory_pages.advise(begin, end - begin, _MADV_HUGEPAGE)]
    if end < place.end:
        # Or else a fault in the last pages could take a whole huge one where the mapping goes on behind them.
        memory_pages.advise(end, place.end - end, _MADV_NOHUGEPAGE)
    errors += [memory_pages.populate_some(address, mmap.PAGESIZE) for address in range(begin, end, step)]
    # Whatever `shmem_enabled` says; and where something is in the way here, the next piece may still do.
    for address in range(begin, end, _PIECE_BYTES):
        errors.append(memory_pages.advise(address, min(_PIECE_BYTES, end - address), _MADV_COLLAPSE))
    error = next(filter(None, errors), 0)
    return f"{errno.errorcode.get(error, error)}: {os.strerror(error).lower()}" if error else None


def huge_page_bytes(places: Iterable[AddressRange], smaps: Path = Path("/proc/self/smaps")) -> int:
    """How many bytes of some places this process reaches through huge pages.

    Args:
        places: that do not overlap.
        smaps: what the kernel tells of this process's mappings; tests pass a made-up file.

    Cost: a walk of the kernel through all mappings of the process, some milliseconds.
    """
    wanted = sorted(place for place in places if place.nbytes)
    if not wanted:
        return 0
    try:
        lines = smaps.read_text().splitlines()
    except OSError:  # a kernel without it: then nothing is known
        return 0
    return sum(min(huge, _overlap(mapping, wanted)) for mapping, huge in _mappings(lines) if huge)


def _mappings(lines: Iterable[str]) -> Iterator[tuple[AddressRange, int]]:
    """Each mapping, and its bytes in huge pages."""
    mapping, huge = AddressRange(0, 0), 0
    for line in lines:
        words = line.split()
        if words[0] in _COUNTED:
            huge += int(words[1]) << 10
        elif not words[0].endswith(":"):
            yield mapping, huge
            begin, _, end = words[0].partition("-")
            mapping, huge = AddressRange(int(begin, 16), int(end, 16) - int(begin, 16)), 0
    yield mapping, huge


def _overlap(mapping: AddressRange, places: Sequence[AddressRange]) -> int:
    return sum(max(0, min(mapping.end, place.end) - max(mapping.address, place.address)) for place in places)
