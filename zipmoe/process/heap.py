"""Settings of the C library's heap, from which torch takes the memory of tensors on the CPU."""

from __future__ import annotations

import ctypes

# mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

MMAP_THRESHOLD_BYTES = 32 << 20
TRIM_THRESHOLD_BYTES = 2 * MMAP_THRESHOLD_BYTES
"""glibc itself goes up to these values as it sees larger blocks freed, but in small steps."""


def keep_freed_memory() -> bool:
    """Makes the heap keep freed memory for the next tensors, up to `TRIM_THRESHOLD_BYTES`.

    By default glibc returns the memory of a few freed tensors to the kernel at once. The next tensors then cost a page
    fault for every 4 KiB: 30 of 150 ms of a decode step with four recurrent states of 2 MiB a layer.

    Returns:
        Whether the C library has these settings; only glibc has them.

    Thread: any; holds for the whole process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) and mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))
