"""The codec `cascade` of 2-bit codes: compresses exponents to chunks, recovers exponents or bf16 weights from chunks.

FORMAT.md has the chunk's byte tables. Tests compare these kernels with the readable twin `zipmoe.codec.cascade_twin`.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from zipmoe.buffer import Address
from zipmoe.errors import InvalidRequest
from zipmoe.kernels.exponent_kernels import ExponentKernels
from zipmoe.kernels.library import load_library

if TYPE_CHECKING:
    from typing_extensions import Buffer


def _declared() -> ctypes.CDLL:
    library = load_library()
    address, size = ctypes.c_void_p, ctypes.c_size_t
    library.zipmoe_cascade_bound.argtypes = [size, size, size]
    library.zipmoe_cascade_bound.restype = size
    library.zipmoe_cascade_compress.argtypes = [address, size, size, size, address]
    library.zipmoe_cascade_compress.restype = size
    return library


_library = _declared()
_kernels = ExponentKernels("cascade")


def compress_cascade(e: Buffer, *, cols: int, block_rows: int) -> bytes:
    """Compresses exponents, to the same bytes on every machine.

    Args:
        e: n bytes, contiguous. Biased exponents.
        cols: Weights per row, 1 to 65 536; the last row may be shorter.
        block_rows: Rows per block, at least 1. A block has fewer rows if these rows exceed 65 536 weights.

    Raises:
        InvalidRequest: A number is out of range, or the chunk could grow to 4 GiB.

    Cost: a buffer for the largest possible chunk, about n bytes; 256 KiB of stack.
    Thread: releases the GIL; safe from any thread.
    """
    with Address("e", e) as x:
        bound = _library.zipmoe_cascade_bound(x.nbytes, cols, block_rows) if min(cols, block_rows) > 0 else 0
        if not bound:
            raise InvalidRequest(
                f"no cascade of {x.nbytes} exponents in rows of {cols} and blocks of {block_rows} rows"
            )
        room = bytearray(bound)
        with Address("room", room, writable=True) as r:
            count = _library.zipmoe_cascade_compress(x.start, x.nbytes, cols, block_rows, r.start)
    return bytes(memoryview(room)[:count])


def decompress_cascade(chunk: Buffer, out: Buffer, *, using: str | None = None) -> None:
    """Recovers exponents from a chunk.

    Args:
        chunk: A cascade chunk, contiguous. Any bytes are safe.
        out: Contiguous, writable, not overlapping `chunk`. Overwritten with biased exponents.
        using: One of `backends()`; by default `backend()`.

    Raises:
        CorruptData: `chunk` is not a chunk of exactly `out.nbytes` exponents. The content of `out` is undefined.
        InvalidRequest: A buffer's layout or access differs from the above. `out` is untouched.

    Cost: 200 KiB of stack. The kernel touches about one byte of the stack per escape of a block.
    Thread: releases the GIL; safe from any thread.
    """
    _kernels.decompress(chunk, out, using)


def recover_cascade(chunk: Buffer, sm: Buffer, out: Buffer, *, using: str | None = None) -> None:
    """Recovers bf16 weights from a chunk and SM bytes in one pass, bit for bit.

    Args:
        chunk: A cascade chunk, contiguous. Any bytes are safe.
        sm: n bytes, contiguous. Sign in bit 7, mantissa in bits 0-6.
        out: 2n bytes, contiguous, writable, not overlapping the inputs. Overwritten with little-endian bf16.
        using: One of `backends()`; by default `backend()`.

    Raises:
        CorruptData: `chunk` is not a chunk of exactly n exponents. The content of `out` is undefined.
        InvalidRequest: A buffer's size, layout or access differs from the above. `out` is untouched.

    Cost: as `decompress_cascade`; about 3.33n bytes of memory traffic. On x86 an output of at least 256 KiB that is
        aligned to 64 bytes is written past the caches.
    Thread: releases the GIL; safe from any thread.
    """
    _kernels.recover(chunk, sm, out, using)
