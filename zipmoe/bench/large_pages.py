"""Allocates memory in 2 MiB pages where the system gives them, as the slots of an arena have."""

from __future__ import annotations

import contextlib
import mmap

from zipmoe.buffer import Address

_LARGE_PAGE_BYTES = 2 << 20


def large_pages(count: int) -> memoryview:
    """Allocates `count` writable zero bytes that begin on a page of 2 MiB."""
    memory = mmap.mmap(-1, count + _LARGE_PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel without large pages refuses. The measurement is then that of small ones.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    with Address("memory", view) as address:
        begin = -address.start % _LARGE_PAGE_BYTES
    return view[begin : begin + count]
