"""Compares buffers at the speed of memory, without the GIL and without numpy."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from zipmoe.buffer import Address

if TYPE_CHECKING:
    from typing_extensions import Buffer

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int


def first_difference(left: Buffer, right: Buffer) -> int | None:
    """Finds the first byte in which two buffers of equal size differ.

    Returns:
        The index of the byte, or None if the buffers are equal.
    """
    with Address("left", left) as a, Address("right", right) as b:
        assert a.nbytes == b.nbytes
        begin, end = 0, a.nbytes
        if _memcmp(a.start, b.start, end) == 0:
            return None
        # Invariant: all bytes before `begin` are equal, and the first difference lies before `end`.
        while end - begin > 1:
            middle = (begin + end) // 2
            if _memcmp(a.start + begin, b.start + begin, middle - begin):
                end = middle
            else:
                begin = middle
        return begin
