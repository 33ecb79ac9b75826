"""The disk beside a run: its bandwidth, what processes read from it, and files that are not in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from zipmoe.errors import Unavailable
from zipmoe.system_error import reason_of

PAGE = 4096
PROBE_BYTES, PROBE_READS, PROBE_THREADS = 8 << 20, 96, 4


class _DiskPlace(NamedTuple):
    file: int
    offset: int


def probe(files: Sequence[Path]) -> float:
    """Measures O_DIRECT reads of 8 MiB at random places of the files, four at a time.

    Returns:
        GB/s.

    Raises:
        Unavailable: the file system has no O_DIRECT, or all files are smaller than a page.

    Cost: 768 MiB of reads.
    """
    nbytes = min(PROBE_BYTES, max(file.stat().st_size for file in files) // PAGE * PAGE)
    if not nbytes:
        raise Unavailable(f"files of less than {PAGE} bytes say nothing about a disk")
    draw = random.Random(time.monotonic_ns())
    with ExitStack() as stack:
        places = []
        for file in files:
            size = file.stat().st_size
            if size >= nbytes:
                fd = _open_direct(file)
                stack.callback(os.close, fd)
                places += [_DiskPlace(fd, offset) for offset in range(0, size - nbytes + 1, nbytes)]
        wanted = draw.sample(places, min(PROBE_READS, len(places)))
        pool = stack.enter_context(ThreadPoolExecutor(PROBE_THREADS, "probe"))
        buffers = [mmap.mmap(-1, nbytes) for _ in range(PROBE_THREADS)]
        begin_s = time.perf_counter()
        shares = [wanted[index::PROBE_THREADS] for index in range(PROBE_THREADS)]
        total = sum(pool.map(_read_all, shares, buffers))
        return total / (time.perf_counter() - begin_s) / 1e9


def read_bytes(processes: Sequence[int]) -> int:
    """Bytes that living processes have had fetched from storage, by read-ahead and page faults as well as by reads."""
    total = 0
    for process in processes:
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{process}/io").read_text().split()
            total += int(fields[fields.index("read_bytes:") + 1])
    return total


def evict(files: Sequence[Path]) -> float:
    """Has the kernel forget what it holds of files.

    Returns:
        The share of their pages that stayed in memory all the same.
    """
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    pages = sum(-(-file.stat().st_size // PAGE) for file in files)
    return sum(map(resident_pages, files)) / max(pages, 1)


def resident_pages(file: Path) -> int:
    """Pages of a file in the page cache."""
    size = file.stat().st_size
    if not size:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    fd = os.open(file, os.O_RDONLY)
    try:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    finally:
        os.close(fd)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), f"cannot map {file}")
    states = (ctypes.c_ubyte * -(-size // PAGE))()
    try:
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), states) != 0:
            raise OSError(ctypes.get_errno(), f"mincore of {file}")
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return sum(state & 1 for state in bytes(states))


def read_ahead_kb(path: Path) -> int | None:
    """How far the kernel reads ahead on the disk that holds a path; None where the disk does not say."""
    device = path.stat().st_dev
    found = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    for folder in (found, found.parent):  # a partition has no queue of its own
        with suppress(OSError):
            return int((folder / "queue/read_ahead_kb").read_text())
    return None


def _open_direct(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        raise Unavailable(f"{file} cannot be read with O_DIRECT: {reason_of(error)}") from error


def _read_all(places: Sequence[_DiskPlace], buffer: mmap.mmap) -> int:
    return sum(os.preadv(place.file, [buffer], place.offset) for place in places)
