"""Gives the address of any Python buffer, also of a read-only buffer, without a copy and without numpy."""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import TYPE_CHECKING

from zipmoe.errors import InvalidRequest

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

_SIMPLE, _WRITABLE = 0, 1


class _PyBuffer(ctypes.Structure):
    """CPython's `Py_buffer`. The layout is part of the stable ABI and the same in every supported version."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("suboffsets", ctypes.POINTER(ctypes.c_ssize_t)),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_PyBuffer)]
_release_buffer.restype = None


class Address:
    """Holds a buffer in place for the length of a `with` block.

    `start` is the address of the first byte (0 if there is no byte), and `nbytes` is the size.

    Args:
        name: Name of the buffer in error messages.
        buffer: Any object with a C-contiguous buffer.
        writable: Whether the block writes to the buffer.

    Raises:
        InvalidRequest: `buffer` is not a buffer, is not contiguous, or is read-only although `writable` is set.
    """

    __slots__ = ("_view", "nbytes", "start")

    def __init__(self, name: str, buffer: Buffer, *, writable: bool = False) -> None:
        self._view = _PyBuffer()
        try:
            _get_buffer(buffer, ctypes.byref(self._view), _WRITABLE if writable else _SIMPLE)
        except (BufferError, TypeError) as error:
            kind = "writable contiguous" if writable else "contiguous"
            raise InvalidRequest(f"{name} is not a {kind} buffer: {error}") from error
        self.start: int = self._view.buf or 0
        self.nbytes: int = self._view.len

    def overlaps(self, other: Address) -> bool:
        """Whether the two buffers share a byte."""
        return self.start < other.start + other.nbytes and other.start < self.start + self.nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _release_buffer(ctypes.byref(self._view))
