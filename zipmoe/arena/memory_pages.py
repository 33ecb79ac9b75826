"""Memory calls that Python's mmap lacks: addresses, fixed mappings, page population without the GIL, mlock."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
from collections.abc import Iterator

from zipmoe.buffer import Address

MAP_NORESERVE = 0x4000  # Python's mmap has the name from 3.13 on
# Linux 5.14.
_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23
_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value
_PIECE_BYTES = 256 << 20  # some tens of milliseconds

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.mmap.restype = ctypes.c_void_p
_libc.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
_libc.memset.restype = ctypes.c_void_p


def address_of(mapping: mmap.mmap) -> int:
    """Returns the address of a mapping's first byte, also of a read-only mapping.

    `ctypes.from_buffer` refuses read-only buffers. The address is valid until the mapping is closed. The address does
    not keep the mapping open.
    """
    with Address("mapping", mapping) as held:
        return held.start


def map_file_over(address: int, nbytes: int, protection: int, fd: int) -> None:
    """Maps the beginning of a file, shared, over pages that this process has mapped before.

    Args:
        address: address of the first byte, the beginning of a page.
        nbytes: size of the range, all of it mapped already, and at most the size of the file.
        protection: `mmap.PROT_...`.
        fd: the file; the caller may close it afterwards.

    Raises:
        OSError: the kernel refuses. The old pages may be unmapped then.
    """
    if _libc.mmap(address, nbytes, protection, mmap.MAP_SHARED | _MAP_FIXED, fd, 0) == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def advise(address: int, nbytes: int, advice: int) -> int:
    """Gives the kernel one madvise advice about pages; returns 0, or the errno of a refusal."""
    return ctypes.get_errno() if _libc.madvise(address, nbytes, advice) else 0


def pieces(nbytes: int) -> Iterator[tuple[int, int]]:
    """Cuts a long call about memory, because Python handles signals (Ctrl-C) only between two calls.

    Yields:
        Offset and size of each piece of at most 256 MiB.
    """
    for offset in range(0, nbytes, _PIECE_BYTES):
        yield offset, min(_PIECE_BYTES, nbytes - offset)


def populate(address: int, nbytes: int) -> None:
    """Makes every page of a writable mapping present. The content of the mapping has to be all zeroes.

    Raises:
        OSError: the kernel has no page to give (ENOMEM) or the memory is broken (EHWPOISON).

    Cost: one pass of the kernel over the memory. Thread: any; the GIL is released.
    """
    for offset, piece_bytes in pieces(nbytes):
        error = populate_some(address + offset, piece_bytes)
        if not error:
            continue
        if error != errno.EINVAL:
            raise OSError(error, os.strerror(error))
        _libc.memset(address + offset, 0, piece_bytes)  # a kernel before 5.14


def populate_some(address: int, nbytes: int) -> int:
    """Makes pages of a writable mapping present and keeps their content; returns 0, or the errno."""
    return advise(address, nbytes, _MADV_POPULATE_WRITE)


def map_present(address: int, nbytes: int) -> None:
    """Fills the page table of a mapping with pages that are already in memory, so that no access faults.

    A kernel before 5.14 refuses. Then each first access to a page faults as usual.

    Cost: 0.1 s a GiB of small pages, 1 ms of huge ones. Thread: any; the GIL is released.
    """
    for offset, piece_bytes in pieces(nbytes):
        advise(address + offset, piece_bytes, _MADV_POPULATE_READ)


def lock(address: int, nbytes: int) -> str | None:
    """Tries to lock pages in memory, so that they are never swapped out.

    Returns:
        None when the pages are locked, otherwise the reason, for the log.
    """
    if _libc.mlock(address, nbytes) == 0:
        return None
    error = ctypes.get_errno()
    soft_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft_bytes == resource.RLIM_INFINITY else f"{soft_bytes} bytes"
    return f"{errno.errorcode.get(error, error)}: {os.strerror(error).lower()} (RLIMIT_MEMLOCK is {limit})"
