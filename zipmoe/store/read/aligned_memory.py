"""Memory that direct I/O accepts."""

from __future__ import annotations

import mmap


def aligned_memory(nbytes: int) -> memoryview:
    """Allocates writable, zeroed memory that begins on a page, as O_DIRECT wants it; freed with its last view."""
    return memoryview(mmap.mmap(-1, max(nbytes, 1)))
