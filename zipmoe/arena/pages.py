"""What Python's mmap cannot do with pages: their address, filling them without the GIL, and locking them."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource

from zipmoe.buffer import Address

# Linux 5.14; mmap does not name it before Python 3.13.
_MADV_POPULATE_WRITE = 23
# Between two pieces a signal (Ctrl-C) is noticed; one piece takes some tens of milliseconds.
_PIECE_BYTES = 256 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
_libc.memset.restype = ctypes.c_void_p


def address_of(mapping: mmap.mmap) -> int:
    """Returns the address of a mapping's first byte, of a read-only one too (`ctypes.from_buffer` refuses those).

    The address is valid until the mapping is closed; it does not keep it open.
    """
    with Address("mapping", mapping) as held:
        return held.start


def populate(address: int, nbytes: int) -> None:
    """Makes every page of a writable mapping present, in zeroes; the mapping's content has to be all zeroes.

    Raises:
        OSError: the kernel has no page to give (ENOMEM) or the memory is broken (EHWPOISON).

    Cost: one pass of the kernel over the memory. Thread: any; the GIL is released.
    """
    for offset in range(0, nbytes, _PIECE_BYTES):
        piece_bytes = min(_PIECE_BYTES, nbytes - offset)
        if _libc.madvise(address + offset, piece_bytes, _MADV_POPULATE_WRITE) == 0:
            continue
        error = ctypes.get_errno()
        if error != errno.EINVAL:
            raise OSError(error, os.strerror(error))
        _libc.memset(address + offset, 0, piece_bytes)  # a kernel before 5.14


def lock(address: int, nbytes: int) -> str | None:
    """Tries to keep pages from ever being swapped out.

    Returns:
        None when they are locked, otherwise why not, for the log.
    """
    if _libc.mlock(address, nbytes) == 0:
        return None
    error = ctypes.get_errno()
    soft_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft_bytes == resource.RLIM_INFINITY else f"{soft_bytes} bytes"
    return f"{errno.errorcode.get(error, error)}: {os.strerror(error).lower()} (RLIMIT_MEMLOCK is {limit})"
