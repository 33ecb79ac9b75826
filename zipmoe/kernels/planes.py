"""Splits bf16 weights into two byte planes and merges the planes again.

    bf16 bit   15    14 ... 7    6 ... 0
               sign  exponent    mantissa

    SM byte = sign << 7 | mantissa            E byte = exponent

Tests compare these kernels with the readable twin in torch, `zipmoe.codec.planes_twin`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zipmoe.buffer import Address
from zipmoe.errors import InvalidRequest
from zipmoe.kernels.backends import backend_index
from zipmoe.kernels.library import load_library

if TYPE_CHECKING:
    from typing_extensions import Buffer

_library = load_library()


def merge_planes(sm: Buffer, e: Buffer, out: Buffer, *, using: str | None = None) -> None:
    """Recovers bf16 values from two byte planes, bit for bit.

    Args:
        sm: n bytes, contiguous. Sign in bit 7, mantissa in bits 0-6.
        e: n bytes, contiguous. Biased exponent.
        out: 2n bytes, contiguous, writable, not overlapping the inputs. Overwritten with little-endian bf16.
        using: One of `backends()`; by default `backend()`.

    Raises:
        InvalidRequest: a buffer's size, layout or access differs from the above. `out` is untouched.

    Cost: 4n bytes of memory traffic.
    Thread: releases the GIL; safe from any thread.
    Source: ZipMoE (arXiv 2601.21198), bit-field decomposition.
    """
    index = backend_index(using)
    with Address("sm", sm) as s, Address("e", e) as x, Address("out", out, writable=True) as o:
        _check_sizes(sm_bytes=s.nbytes, e_bytes=x.nbytes, bf16_bytes=o.nbytes)
        if o.overlaps(s) or o.overlaps(x):
            raise InvalidRequest("out overlaps sm or e")
        _library.zipmoe_merge_planes(index, s.start, x.start, o.start, s.nbytes)


def split_planes(bf16: Buffer, sm: Buffer, e: Buffer, *, using: str | None = None) -> None:
    """Splits bf16 values into two byte planes.

    Args:
        bf16: 2n bytes, contiguous. Little-endian bf16.
        sm: n bytes, contiguous, writable, overlapping nothing. Overwritten: sign in bit 7, mantissa in bits 0-6.
        e: n bytes, contiguous, writable, overlapping nothing. Overwritten: biased exponent.
        using: One of `backends()`; by default `backend()`.

    Raises:
        InvalidRequest: a buffer's size, layout or access differs from the above. `sm` and `e` are untouched.

    Cost: 4n bytes of memory traffic.
    Thread: releases the GIL; safe from any thread.
    Source: ZipMoE (arXiv 2601.21198), bit-field decomposition.
    """
    index = backend_index(using)
    with Address("bf16", bf16) as b, Address("sm", sm, writable=True) as s, Address("e", e, writable=True) as x:
        _check_sizes(sm_bytes=s.nbytes, e_bytes=x.nbytes, bf16_bytes=b.nbytes)
        if s.overlaps(b) or x.overlaps(b) or s.overlaps(x):
            raise InvalidRequest("sm, e and bf16 overlap")
        _library.zipmoe_split_planes(index, b.start, s.start, x.start, s.nbytes)


def _check_sizes(*, sm_bytes: int, e_bytes: int, bf16_bytes: int) -> None:
    if sm_bytes != e_bytes or bf16_bytes != 2 * sm_bytes:
        raise InvalidRequest(f"sm has {sm_bytes} bytes, e {e_bytes} and bf16 {bf16_bytes}, expected n, n and 2n")
