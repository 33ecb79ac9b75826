"""Decompression and recovery kernels of an exponent codec, called on checked buffers."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from zipmoe.buffer import Address
from zipmoe.errors import CorruptData, InvalidRequest
from zipmoe.kernels.backends import backend_index
from zipmoe.kernels.library import load_library

if TYPE_CHECKING:
    from typing_extensions import Buffer

CORRUPT = -2
"""Result of a kernel for a chunk that does not hold exactly the expected number of exponents."""


class ExponentKernels:
    """The kernels `zipmoe_CODEC_decompress` and `zipmoe_CODEC_recover` of the library."""

    def __init__(self, codec: str) -> None:
        """Finds the kernels of a codec and declares their arguments."""
        library = load_library()
        address, size = ctypes.c_void_p, ctypes.c_size_t
        self._codec = codec
        self._decompress = getattr(library, f"zipmoe_{codec}_decompress")
        self._decompress.argtypes = [ctypes.c_int, address, size, address, size]
        self._decompress.restype = ctypes.c_int
        self._recover = getattr(library, f"zipmoe_{codec}_recover")
        self._recover.argtypes = [ctypes.c_int, address, size, address, address, size]
        self._recover.restype = ctypes.c_int

    def decompress(self, chunk: Buffer, out: Buffer, using: str | None) -> None:
        """Recovers exponents from a chunk; raises as `decompress_cascade` does."""
        index = backend_index(using)
        with Address("chunk", chunk) as c, Address("out", out, writable=True) as o:
            if o.overlaps(c):
                raise InvalidRequest("out overlaps chunk")
            self._check(self._decompress(index, c.start, c.nbytes, o.start, o.nbytes), c.nbytes, o.nbytes)

    def recover(self, chunk: Buffer, sm: Buffer, out: Buffer, using: str | None) -> None:
        """Recovers bf16 weights from a chunk and SM bytes; raises as `recover_cascade` does."""
        index = backend_index(using)
        with Address("chunk", chunk) as c, Address("sm", sm) as s, Address("out", out, writable=True) as o:
            if o.nbytes != 2 * s.nbytes:
                raise InvalidRequest(f"out has {o.nbytes} bytes, expected two for each of the {s.nbytes} sm bytes")
            if o.overlaps(c) or o.overlaps(s):
                raise InvalidRequest("out overlaps chunk or sm")
            self._check(self._recover(index, c.start, c.nbytes, s.start, o.start, s.nbytes), c.nbytes, s.nbytes)

    def _check(self, result: int, chunk_bytes: int, count: int) -> None:
        if result == CORRUPT:
            raise CorruptData(f"{self._codec} e-chunk of {chunk_bytes} bytes does not hold exactly {count} exponents")
