"""Computes bf16 linears bit for bit in the summation orders of torch on CPUs, from plain or compressed weights.

    out[m][n] = bf16(sum over k of x[m][k] * weight[n][k]  + bias[n])

`native/linear/linear.h` defines the orders. Sums of a given order do not depend on m, n or the number of threads: a row
has the same bits alone and in a batch. Which of the orders torch uses may depend on the shape and on the threads;
`zipmoe.model.linear.linear_order` finds that order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zipmoe.buffer import Address
from zipmoe.errors import CorruptData, InvalidRequest, ResourceExhausted
from zipmoe.kernels.backends import backend_index
from zipmoe.kernels.exponent_kernels import CORRUPT
from zipmoe.kernels.library import load_library
from zipmoe.kernels.linear_buffers import CheckedAddresses, bf16_address

if TYPE_CHECKING:
    from typing_extensions import Buffer

LANES, PAIRS = 0, 1
"""Numbers of the kinds of orders in the library."""

_K_BLOCK_STEP = 32


@dataclass(frozen=True)
class Order:
    """The order of a sum over inputs, made by `lanes` or `pairs`: its partial sums."""

    number: int
    k_block: int = 0
    parts: int = 1

    def __str__(self) -> str:
        if not self.number:
            return "lanes"
        return f"pairs in blocks of {self.k_block}" + (f", {self.parts} parts" if self.parts > 1 else "")

    def same_sums(self, other: Order, k: int) -> bool:
        """Whether both orders give equal sums of k inputs. Block sizes of k and more count as equal."""
        blocks = self.number == other.number and min(self.k_block, k) == min(other.k_block, k)
        return blocks and self.parts == other.parts


def lanes() -> Order:
    """Returns torch's own order on x86 CPUs with AVX2: 64 partial sums, input k in sum k mod 64."""
    return Order(LANES)


def pairs(k_block: int, parts: int = 1) -> Order:
    """Returns oneDNN's order on CPUs with avx512_bf16: one partial sum for each block of inputs, pair after pair.

    Args:
        k_block: inputs of a block, a positive multiple of 32.
        parts: number of parts, at least 1. Parts have equally many blocks. The sums of the parts are added last.

    Raises:
        InvalidRequest: an argument is out of range.
    """
    if k_block <= 0 or k_block % _K_BLOCK_STEP:
        raise InvalidRequest(f"k_block is {k_block}, but has to be a positive multiple of {_K_BLOCK_STEP}")
    if parts < 1:
        raise InvalidRequest(f"parts is {parts}, but has to be at least 1")
    return Order(PAIRS, k_block, parts)


@dataclass(frozen=True)
class LinearShape:
    """Sizes of a linear: m rows of k inputs give m rows of n outputs."""

    m: int
    n: int
    k: int


@dataclass(frozen=True)
class CascadePart:
    """A compressed part of a weight matrix: some of its rows."""

    rows: int
    e_chunk: Buffer
    """A chunk of the codec `cascade`. Any bytes are safe."""

    sm: Buffer
    """One byte per weight: sign in bit 7, mantissa in bits 0-6."""


def _declared() -> ctypes.CDLL:
    library = load_library()
    number, address, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    library.zipmoe_linear_is_native.argtypes = [number, number]
    library.zipmoe_linear_is_native.restype = number
    library.zipmoe_linear.argtypes = [number, number, *[address] * 4, *[size] * 6]
    library.zipmoe_linear.restype = number
    library.zipmoe_linear_cascade.argtypes = [
        *(number, number),
        *(address, address, size, address, address),
        *[size] * 7,
    ]
    library.zipmoe_linear_cascade.restype = number
    return library


_library = _declared()


def is_native(order: Order, using: str | None = None) -> bool:
    """Whether a backend has a vector kernel for an order; otherwise the readable scalar code computes, which is slow.

    Args:
        order: `lanes()` or `pairs(...)`.
        using: One of `backends()`; by default `backend()`.
    """
    return bool(_library.zipmoe_linear_is_native(backend_index(using), order.number))


def linear_bf16(
    x: Buffer,
    weight: Buffer,
    out: Buffer,
    shape: LinearShape,
    order: Order,
    *,
    bias: Buffer | None = None,
    threads: int = 1,
    using: str | None = None,
) -> None:
    """Computes a linear and reads every weight from memory once, for up to some hundreds of rows.

    Args:
        x: bf16, m rows of k.
        weight: bf16, n rows of k.
        out: bf16, m rows of n, writable, overlapping nothing. Overwritten.
        shape: m, n and k.
        order: summation order of the products of an output.
        bias: bf16, n numbers that are added before rounding.
        threads: most threads that compute, the calling thread included; the result does not depend on this number.
        using: One of `backends()`; by default `backend()`.

    Raises:
        InvalidRequest: a buffer's size, layout or access differs from the above. `out` is untouched.
        ResourceExhausted: there is no memory for a copy of the inputs in another layout, at most 4 MiB or 64 rows.

    Cost: 2nk bytes of memory traffic, or 2mnk operations.
    Thread: releases the GIL; safe from any thread. A second call at the same time runs on its calling thread alone.
    """
    with ExitStack() as stack:
        addresses = CheckedAddresses(stack, x, out, shape, bias)
        weights = bf16_address(stack, "weight", weight, shape.n * shape.k)
        addresses.check_apart(weights)
        _check(
            _library.zipmoe_linear(
                *(backend_index(using), order.number),
                *(addresses.x, weights.start, addresses.bias or None, addresses.out.start),
                *(shape.m, shape.n, shape.k, order.k_block, order.parts, threads),
            ),
            shape,
        )


def run_linear(x: int, weight: int, bias: int, out: int, m: int, n: int, k: int, order: Order, threads: int) -> None:
    """Computes `linear_bf16` from memory addresses, without any check, on `backend()`; a `bias` of 0 means none.

    Raises:
        ResourceExhausted: as `linear_bf16`.
    """
    result = _library.zipmoe_linear(
        backend_index(None), order.number, x, weight, bias or None, out, m, n, k, order.k_block, order.parts, threads
    )
    if result != 0:
        _check(result, LinearShape(m, n, k))


def _check(result: int, shape: LinearShape) -> None:
    if result != 0:
        raise ResourceExhausted(f"no memory for {shape.m} rows of {shape.k} inputs and a panel of weights")


def linear_cascade(
    x: Buffer,
    parts: Sequence[CascadePart],
    out: Buffer,
    shape: LinearShape,
    order: Order,
    *,
    bias: Buffer | None = None,
    threads: int = 1,
    using: str | None = None,
) -> None:
    """Computes a linear from compressed weights, without writing recovered weights to memory.

    Chunks with other rows than those of the matrix are recovered to memory first. Very narrow matrices are packed so.

    Args:
        x: bf16, m rows of k.
        parts: the parts of the weight matrix in order, n rows together.
        out: bf16, m rows of n, writable, overlapping nothing. Overwritten.
        shape: m, n and k.
        order: summation order of the products of an output.
        bias: bf16, n numbers that are added before rounding.
        threads: most threads that compute, the calling thread included; the result does not depend on this number.
        using: One of `backends()`; by default `backend()`.

    Raises:
        CorruptData: an e-chunk does not hold exactly rows * k exponents. The content of `out` is undefined.
        InvalidRequest: a buffer's size, layout or access differs from the above. `out` is untouched.
        ResourceExhausted: there is no memory for a copy of the inputs in another layout, or for a panel of weights.

    Cost: memory traffic of the parts' size, or 2mnk operations.
    Thread: as `linear_bf16`.
    """
    weights = CascadeWeights(parts, shape.n, shape.k)
    with ExitStack() as stack:
        addresses = CheckedAddresses(stack, x, out, shape, bias)
        for part in parts:
            addresses.check_apart(*(stack.enter_context(Address("part", each)) for each in (part.e_chunk, part.sm)))
        run_cascade(
            addresses.x, weights, addresses.out.start, shape.m, order, threads, bias=addresses.bias, using=using
        )


class NativePart(ctypes.Structure):
    """The C structure `zipmoe_part`."""

    _fields_ = (
        ("chunk", ctypes.c_void_p),
        ("chunk_bytes", ctypes.c_size_t),
        ("sm", ctypes.c_void_p),
        ("rows", ctypes.c_size_t),
    )


class CascadeWeights:
    """Checked addresses of the parts of a compressed matrix, for `run_cascade`.

    The object keeps references to the parts' buffers, so that the memory stays mapped. The owner must not move or
    resize a buffer meanwhile.
    """

    __slots__ = ("_parts", "k", "n", "table")

    def __init__(self, parts: Sequence[CascadePart], n: int, k: int) -> None:
        """Looks up the addresses of the parts.

        Args:
            parts: the parts of the matrix in order.
            n: rows of the matrix.
            k: weights of a row.

        Raises:
            InvalidRequest: a buffer's layout is wrong, an SM plane does not have rows * k bytes, or the rows of the
                parts are not n together.
        """
        if sum(part.rows for part in parts) != n or any(part.rows < 0 for part in parts):
            raise InvalidRequest(f"parts have {[part.rows for part in parts]} rows, expected {n} together")
        self._parts = tuple(parts)
        self.n, self.k = n, k
        self.table: ctypes.Array[NativePart] = (NativePart * len(parts))()
        """The parts as kernels take them, valid as long as this object."""
        for place, part in zip(self.table, parts, strict=True):
            with Address("e_chunk", part.e_chunk) as chunk, Address("sm", part.sm) as plane:
                if plane.nbytes != part.rows * k:
                    raise InvalidRequest(f"sm has {plane.nbytes} bytes, expected {part.rows} rows of {k}")
                place.chunk, place.chunk_bytes = chunk.start, chunk.nbytes
                place.sm, place.rows = plane.start, part.rows


def run_cascade(
    x: int,
    weights: CascadeWeights,
    out: int,
    m: int,
    order: Order,
    threads: int,
    *,
    bias: int = 0,
    using: str | None = None,
) -> None:
    """Computes `linear_cascade` from memory addresses, without any check; a `bias` of 0 means none.

    Raises:
        CorruptData, ResourceExhausted: as `linear_cascade`.
    """
    n, k = weights.n, weights.k
    result = _library.zipmoe_linear_cascade(
        *(backend_index(using), order.number, x, weights.table, len(weights.table), bias or None, out),
        *(m, n, k, order.k_block, order.parts, 0, threads),
    )
    if result == CORRUPT:
        raise CorruptData(f"a cascade e-chunk of the matrix does not hold exactly the exponents of its rows of {k}")
    if result != 0:
        _check(result, LinearShape(m, n, k))
