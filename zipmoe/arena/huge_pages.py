"""Huge pages: one TLB entry, one page fault and one segment of a disk read for 2 MiB instead of 4 KiB.

Huge pages are optional. Memory without them is equally correct, and slower by a tenth or less. Huge pages take no more
memory than small pages, because only memory that fills a whole huge page is turned into one.

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
_COUNTED = ("AnonHugePages:", "ShmemPmdMapped:")


class AddressRange(NamedTuple):
    """A range of this process's address space."""

    address: int
    nbytes: int

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.address + self.nbytes


@cache
def huge_page_size() -> int:
    """Bytes of a huge page on this machine; 2 MiB where the kernel names no size."""
    try:
        return int((_SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return _DEFAULT_BYTES


def prefer_huge_pages(place: AddressRange) -> str | None:
    """Turns the memory of a writable mapping into huge pages, as far as whole huge pages fit. The content stays.

    The best moment is before any page is touched or allocated: then the kernel zeroes each huge page once and copies
    nothing. The function touches one page in each huge page first, because the kernel does not build a huge page out of
    memory that is not present.

    Args:
        place: range of a mapping of anonymous or shared memory, which may be locked or sealed.

    Returns:
        None when the kernel granted every request, otherwise its first error, for the log. Such an error is harmless:
        some of the memory stays in small pages. `huge_page_bytes` measures the memory that is in huge pages.

    Cost: the kernel zeroes the memory, once. Thread: any; the GIL is released.
    """
    step = huge_page_size()
    begin = -(-place.address // step) * step
    end = place.end // step * step
    if begin >= end:
        return None
    errors = [memory_pages.advise(begin, end - begin, _MADV_HUGEPAGE)]
    if end < place.end:
        # Otherwise a fault in the last pages could take a whole huge page where the mapping continues behind `place`.
        memory_pages.advise(end, place.end - end, _MADV_NOHUGEPAGE)
    errors += [memory_pages.populate_some(address, mmap.PAGESIZE) for address in range(begin, end, step)]
    # MADV_COLLAPSE also works where `shmem_enabled` is never. After a piece that fails, the next may still succeed.
    for offset, piece_bytes in memory_pages.pieces(end - begin):
        errors.append(memory_pages.advise(begin + offset, piece_bytes, _MADV_COLLAPSE))
    error = next(filter(None, errors), 0)
    return f"{errno.errorcode.get(error, error)}: {os.strerror(error).lower()}" if error else None


def huge_page_bytes(places: Iterable[AddressRange], smaps: Path = Path("/proc/self/smaps")) -> int:
    """Counts the bytes of some address ranges that this process reaches through huge pages.

    Args:
        places: ranges that do not overlap.
        smaps: the kernel's description of this process's mappings; tests pass a file of their own.

    Cost: the kernel walks through all mappings of the process, some milliseconds.
    """
    wanted = sorted(place for place in places if place.nbytes)
    if not wanted:
        return 0
    try:
        lines = smaps.read_text().splitlines()
    except OSError:  # a kernel without smaps: the number is unknown
        return 0
    return sum(min(huge, _overlap(mapping, wanted)) for mapping, huge in _mappings(lines) if huge)


def _mappings(lines: Iterable[str]) -> Iterator[tuple[AddressRange, int]]:
    """Yields the range of each mapping and the mapping's bytes in huge pages."""
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
