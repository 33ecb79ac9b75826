"""The codec `huffman`: compresses exponents to chunks, recovers exponents or bf16 weights from chunks.

FORMAT.md has the chunk's byte tables. Tests compare these kernels with the readable twin `zipmoe.codec.huffman_twin`.
The kernels are portable C++, the same for every backend. The backend only chooses the code that merges planes.
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
    library.zipmoe_huffman_bound.argtypes = [size]
    library.zipmoe_huffman_bound.restype = size
    library.zipmoe_huffman_compress.argtypes = [address, size, size, address]
    library.zipmoe_huffman_compress.restype = size
    return library


_library = _declared()
_kernels = ExponentKernels("huffman")


def compress_huffman(e: Buffer, *, cols: int | None = None) -> bytes:
    """Compresses exponents, to the same bytes on every machine.

    Args:
        e: n bytes, contiguous. Biased exponents.
        cols: Weights per row, at least 1; the last row may be shorter. None for exponents without rows.

    Raises:
        InvalidRequest: `cols` is out of range, or there are 4 Gi exponents or more.

    Cost: a buffer for the largest possible chunk, about n bytes.
    Thread: releases the GIL; safe from any thread.
    """
    if cols is not None and cols < 1:
        raise InvalidRequest(f"a row has at least 1 weight, not {cols}")
    with Address("e", e) as x:
        bound = _library.zipmoe_huffman_bound(x.nbytes)
        if not bound:
            raise InvalidRequest(f"{x.nbytes} exponents are too many for one chunk")
        room = bytearray(bound)
        with Address("room", room, writable=True) as r:
            count = _library.zipmoe_huffman_compress(x.start, x.nbytes, cols or 0, r.start)
    return bytes(memoryview(room)[:count])


def decompress_huffman(chunk: Buffer, out: Buffer, *, using: str | None = None) -> None:
    """Recovers exponents from a chunk.

    Args:
        chunk: A Huffman chunk, contiguous. Any bytes are safe.
        out: Contiguous, writable, not overlapping `chunk`. Overwritten with biased exponents.
        using: One of `backends()`; by default `backend()`.

    Raises:
        CorruptData: `chunk` is not a chunk of exactly `out.nbytes` exponents. The content of `out` is undefined.
        InvalidRequest: A buffer's layout or access differs from the above. `out` is untouched.

    Cost: 112 KiB of stack, of which the kernel touches 48 KiB.
    Thread: releases the GIL; safe from any thread.
    """
    _kernels.decompress(chunk, out, using)


def recover_huffman(chunk: Buffer, sm: Buffer, out: Buffer, *, using: str | None = None) -> None:
    """Recovers bf16 weights from a chunk and SM bytes, block by block in the cache, bit for bit.

    Args:
        chunk: A Huffman chunk, contiguous. Any bytes are safe.
        sm: n bytes, contiguous. Sign in bit 7, mantissa in bits 0-6.
        out: 2n bytes, contiguous, writable, not overlapping the inputs. Overwritten with little-endian bf16.
        using: One of `backends()`; by default `backend()`.

    Raises:
        CorruptData: `chunk` is not a chunk of exactly n exponents. The content of `out` is undefined.
        InvalidRequest: A buffer's size, layout or access differs from the above. `out` is untouched.

    Cost: 112 KiB of stack; about 3.33n bytes of memory traffic.
    Thread: releases the GIL; safe from any thread.
    """
    _kernels.recover(chunk, sm, out, using)
