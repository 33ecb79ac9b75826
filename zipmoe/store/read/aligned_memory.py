"""Allocates memory that O_DIRECT accepts."""

from __future__ import annotations

import mmap


def aligned_memory(nbytes: int) -> memoryview:
    """Allocates writable, zeroed memory that begins on a page. The memory is freed with its last view."""
    return memoryview(mmap.mmap(-1, max(nbytes, 1)))
