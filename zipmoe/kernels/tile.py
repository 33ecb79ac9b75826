"""Tile form: weights in memory, losslessly compressed, from which products of few rows are as fast as memory.

`native/tile/FORMAT.md` defines the form. It is made in memory from the chunks of a store or from bf16 rows, for CPUs
with AVX-512 VBMI2 and BF16, and is never written to a file. A product has the bits of the order `pairs`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from zipmoe.buffer import Address
from zipmoe.errors import CorruptData, InvalidRequest, ResourceExhausted
from zipmoe.kernels.backends import backend, backend_index
from zipmoe.kernels.exponent_kernels import CORRUPT
from zipmoe.kernels.library import load_library
from zipmoe.kernels.linear import CascadePart, CascadeWeights, LinearShape, Order
from zipmoe.kernels.linear_buffers import CheckedAddresses, bf16_address, check_apart

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PAIRS = 1
_UNKNOWN, _NO_ROOM = -1, -4


class _Part(ctypes.Structure):
    """The C structure `zipmoe_tile_part`."""

    _fields_ = (
        ("chunk", ctypes.c_void_p),
        ("chunk_bytes", ctypes.c_size_t),
        ("sm", ctypes.c_void_p),
        ("rows", ctypes.c_size_t),
    )


def _declared() -> ctypes.CDLL:
    library = load_library()
    number, address, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    library.zipmoe_tile_is_supported.argtypes = [number]
    library.zipmoe_tile_is_supported.restype = number
    library.zipmoe_tile_bound.argtypes = [size, size]
    library.zipmoe_tile_bound.restype = size
    library.zipmoe_tile_from_cascade.argtypes = [
        number,
        address,
        size,
        size,
        size,
        address,
        size,
        address,
    ]
    library.zipmoe_tile_from_cascade.restype = number
    library.zipmoe_tile_from_bf16.argtypes = [number, address, size, size, address, size, address]
    library.zipmoe_tile_from_bf16.restype = number
    library.zipmoe_tile_to_bf16.argtypes = [number, address, size, size, size, address]
    library.zipmoe_tile_to_bf16.restype = number
    library.zipmoe_tile_linear.argtypes = [number, address, address, size, address, address, *[size] * 6]
    library.zipmoe_tile_linear.restype = number
    return library


_library = _declared()


def supports_tiles(using: str | None = None) -> bool:
    """Whether a backend has the functions of this module, which raise InvalidRequest otherwise.

    Args:
        using: one of `backends()`; by default `backend()`.
    """
    return bool(_library.zipmoe_tile_is_supported(backend_index(using)))


def tile_bound(n: int, k: int) -> int:
    """Returns the most bytes that n rows of k weights take in tile form: little more than in bf16.

    Args:
        n: rows, that is outputs. Rows are padded to a multiple of 32.
        k: weights of a row, that is inputs. They are padded to a multiple of 2.

    Raises:
        InvalidRequest: a size is negative, or the product exceeds 2**36.
    """
    bound: int = _library.zipmoe_tile_bound(n, k) if min(n, k) >= 0 else 0
    if not bound:
        raise InvalidRequest(f"no tile form for {n} rows of {k} weights")
    return bound


def tiles_from_cascade(parts: Sequence[CascadePart], out: Buffer, n: int, k: int, *, using: str | None = None) -> int:
    """Converts a matrix from the chunks of a store to tile form.

    Args:
        parts: the parts of the matrix in order, n rows together. Any bytes are safe.
        out: writable, overlapping nothing, best aligned to 64 bytes. `tile_bound(n, k)` bytes are always enough. Bytes
            behind the matrix stay as they are.
        n: rows of the matrix.
        k: weights of a row.
        using: one of `backends()`; by default `backend()`.

    Returns:
        The bytes of the matrix, a multiple of 64.

    Raises:
        CorruptData: an e-chunk does not hold exactly rows * k exponents. The content of `out` is undefined.
        InvalidRequest: a buffer's size, layout or access differs from the above, or the backend has no tile form. `out`
            is untouched.
        ResourceExhausted: the matrix needs more bytes than `out` has, or there is no memory for about 66 rows and
            400 KB, which the thread keeps. The content of `out` is undefined.

    Cost: as `tiles_from_bf16`, and that of `decompress_cascade`.
    Thread: releases the GIL; safe from any thread.
    """
    tile_bound(n, k)  # refuses sizes that are out of range
    weights = CascadeWeights(parts, n, k)
    table = (_Part * len(parts))(*(_Part(*place) for place in weights.places))
    written = ctypes.c_size_t()
    with ExitStack() as stack:
        room = stack.enter_context(Address("out", out, writable=True))
        for part in parts:
            check_apart(room, *(stack.enter_context(Address("part", each)) for each in (part.e_chunk, part.sm)))
        result = _library.zipmoe_tile_from_cascade(
            backend_index(using), table, len(parts), n, k, room.start, room.nbytes, ctypes.byref(written)
        )
    if result == CORRUPT:
        raise CorruptData(f"cascade e-chunks of {len(parts)} parts do not hold exactly {n} rows of {k} exponents")
    _check(result, n, k, using)
    return written.value


def tiles_from_bf16(weight: Buffer, out: Buffer, n: int, k: int, *, using: str | None = None) -> int:
    """Converts a bf16 matrix to tile form.

    Args:
        weight: bf16, n rows of k.
        out: as for `tiles_from_cascade`.
        n: rows of the matrix.
        k: weights of a row.
        using: one of `backends()`; by default `backend()`.

    Returns:
        The bytes of the matrix, a multiple of 64.

    Raises:
        InvalidRequest, ResourceExhausted: as `tiles_from_cascade`.

    Cost: about one nanosecond for four weights.
    Thread: releases the GIL; safe from any thread.
    """
    tile_bound(n, k)  # refuses sizes that are out of range
    written = ctypes.c_size_t()
    with ExitStack() as stack:
        room = stack.enter_context(Address("out", out, writable=True))
        rows = bf16_address(stack, "weight", weight, n * k)
        check_apart(room, rows)
        result = _library.zipmoe_tile_from_bf16(
            backend_index(using), rows.start, n, k, room.start, room.nbytes, ctypes.byref(written)
        )
    _check(result, n, k, using)
    return written.value


def tiles_to_bf16(tiles: Buffer, out: Buffer, n: int, k: int, *, using: str | None = None) -> None:
    """Recovers a bf16 matrix from tile form, bit for bit.

    Args:
        tiles: a matrix in tile form, perhaps followed by other bytes. Any bytes are safe.
        out: bf16, n rows of k, writable, not overlapping `tiles`. Overwritten.
        n: rows of the matrix.
        k: weights of a row.
        using: one of `backends()`; by default `backend()`.

    Raises:
        CorruptData: `tiles` is not a matrix of n rows of k weights. The content of `out` is undefined.
        InvalidRequest: a buffer's size, layout or access differs from the above, or the backend has no tile form. `out`
            is untouched.
        ResourceExhausted: there is no memory for 80 KB.

    Thread: releases the GIL; safe from any thread.
    """
    with ExitStack() as stack:
        stored = stack.enter_context(Address("tiles", tiles))
        rows = bf16_address(stack, "out", out, n * k, writable=True)
        check_apart(rows, stored)
        result = _library.zipmoe_tile_to_bf16(backend_index(using), stored.start, stored.nbytes, n, k, rows.start)
    _check(result, n, k, using)


def linear_tiles(
    x: Buffer,
    tiles: Buffer,
    out: Buffer,
    shape: LinearShape,
    order: Order,
    *,
    bias: Buffer | None = None,
    threads: int = 1,
    using: str | None = None,
) -> None:
    """Computes a linear from weights in tile form; a row has the same bits alone and among others.

    Args:
        x: bf16, m rows of k.
        tiles: a matrix in tile form, perhaps followed by other bytes. Any bytes are safe.
        out: bf16, m rows of n, writable, overlapping nothing. Overwritten.
        shape: m, n and k.
        order: summation order of the products of an output, made by `pairs`.
        bias: bf16, n numbers that are added before rounding.
        threads: most threads that compute, the calling thread included; the result does not depend on this number.
        using: one of `backends()`; by default `backend()`.

    Raises:
        CorruptData: `tiles` is not a matrix of n rows of k weights. The content of `out` is undefined.
        InvalidRequest: a buffer's size, layout or access differs from the above, the order is `lanes`, or the backend
            has no tile form. `out` is untouched.
        ResourceExhausted: there is no memory for a copy of up to 512 rows of inputs.

    Cost: memory traffic of the matrix in tile form, or 2mnk operations.
    Thread: as `zipmoe.kernels.linear.linear_bf16`.
    """
    with ExitStack() as stack:
        addresses = CheckedAddresses(stack, x, out, shape, bias)
        stored = stack.enter_context(Address("tiles", tiles))
        addresses.check_apart(stored)
        run_tiles(
            addresses.x,
            stored.start,
            stored.nbytes,
            addresses.out.start,
            shape,
            order,
            threads,
            bias=addresses.bias,
            using=using,
        )


def run_tiles(
    x: int,
    tiles: int,
    tiles_bytes: int,
    out: int,
    shape: LinearShape,
    order: Order,
    threads: int,
    *,
    bias: int = 0,
    using: str | None = None,
) -> None:
    """Computes `linear_tiles` from memory addresses, whose sizes are not checked; a `bias` of 0 means none.

    Raises:
        CorruptData, InvalidRequest, ResourceExhausted: as `linear_tiles`.
    """
    if order.number != _PAIRS:
        raise InvalidRequest(f"tile form has no products in the order {order}")
    m, n, k = shape.m, shape.n, shape.k
    result = _library.zipmoe_tile_linear(
        backend_index(using),
        *(x, tiles, tiles_bytes, bias or None, out),
        *(m, n, k, order.k_block, order.parts, threads),
    )
    _check(result, n, k, using)


def _check(result: int, n: int, k: int, using: str | None) -> None:
    if result == CORRUPT:
        raise CorruptData(f"the bytes are not {n} rows of {k} weights in tile form")
    if result == _UNKNOWN:
        raise InvalidRequest(f"backend {using or backend()} has no tile form on this machine")
    if result == _NO_ROOM:
        raise ResourceExhausted(f"tile form of {n} rows of {k} weights needs more bytes than there is room for")
    if result != 0:
        raise ResourceExhausted(f"no memory to compute with {n} rows of {k} weights in tile form")
