"""In-memory forms of a matrix: losslessly compressed weights that a kernel multiplies as they are.

A form is made at run time, from the chunks of a store or from bf16 rows, and is never written to a file. Its products
have the bits of one summation order. The forms share this contract and differ in their bytes, their order and their
machines: `zipmoe.kernels.tile` and `zipmoe.kernels.nibble`.
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

_UNKNOWN, _NO_ROOM = -1, -4


class MemoryForm:
    """One form, by the library's functions for it.

    Attributes:
        name: the form's name, as in "tile" form.
    """

    def __init__(self, name: str, order_number: int) -> None:
        """Finds the functions `zipmoe_NAME_...` of the library.

        Args:
            name: the form's name.
            order_number: number of the summation order of its products, as in `Order`.
        """
        self.name = name
        self._order_number = order_number
        library = load_library()
        number, address, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
        self._is_supported = getattr(library, f"zipmoe_{name}_is_supported")
        self._is_supported.argtypes = [number]
        self._is_supported.restype = number
        self._bound = getattr(library, f"zipmoe_{name}_bound")
        self._bound.argtypes = [size, size]
        self._bound.restype = size
        self._from_cascade = getattr(library, f"zipmoe_{name}_from_cascade")
        self._from_cascade.argtypes = [number, address, size, size, size, address, size, address]
        self._from_cascade.restype = number
        self._from_bf16 = getattr(library, f"zipmoe_{name}_from_bf16")
        self._from_bf16.argtypes = [number, address, size, size, address, size, address]
        self._from_bf16.restype = number
        self._to_bf16 = getattr(library, f"zipmoe_{name}_to_bf16")
        self._to_bf16.argtypes = [number, address, size, size, size, address]
        self._to_bf16.restype = number
        self._linear = getattr(library, f"zipmoe_{name}_linear")
        self._linear.argtypes = [number, address, address, size, address, address, *[size] * 6]
        self._linear.restype = number

    def __str__(self) -> str:
        return f"{self.name} form"

    def is_supported(self, using: str | None = None) -> bool:
        """Whether a backend has this form. The other methods raise InvalidRequest where it has not.

        Args:
            using: one of `backends()`; by default `backend()`.
        """
        return bool(self._is_supported(backend_index(using)))

    def takes(self, order: Order) -> bool:
        """Whether the form has products in a summation order."""
        return order.number == self._order_number

    def bound(self, n: int, k: int) -> int:
        """Returns the most bytes that n rows of k weights take in this form: little more than in bf16.

        Args:
            n: rows, that is outputs. Rows are padded to whole tiles.
            k: weights of a row, that is inputs.

        Raises:
            InvalidRequest: a size is negative, or larger than the form can hold.
        """
        bound: int = self._bound(n, k) if min(n, k) >= 0 else 0
        if not bound:
            raise InvalidRequest(f"no {self} for {n} rows of {k} weights")
        return bound

    def from_cascade(
        self, parts: Sequence[CascadePart], out: Buffer, n: int, k: int, *, using: str | None = None
    ) -> int:
        """Converts a matrix from the chunks of a store to this form.

        Args:
            parts: the parts of the matrix in order, n rows together. Any bytes are safe.
            out: writable, overlapping nothing, best aligned to 64 bytes. `bound(n, k)` bytes are always enough. Bytes
                behind the matrix stay as they are.
            n: rows of the matrix.
            k: weights of a row.
            using: one of `backends()`; by default `backend()`.

        Returns:
            The bytes of the matrix, a multiple of 32.

        Raises:
            CorruptData: an e-chunk does not hold exactly rows * k exponents. The content of `out` is undefined.
            InvalidRequest: a buffer's size, layout or access differs from the above, or the backend has no such form.
                `out` is untouched.
            ResourceExhausted: the matrix needs more bytes than `out` has, or there is no memory for the rows of a tile
                and 400 KB, which the thread keeps. The content of `out` is undefined.

        Cost: as `from_bf16`, and that of `recover_cascade`.
        Thread: releases the GIL; safe from any thread.
        """
        self.bound(n, k)  # refuses sizes that are out of range
        weights = CascadeWeights(parts, n, k)
        written = ctypes.c_size_t()
        with ExitStack() as stack:
            room = stack.enter_context(Address("out", out, writable=True))
            for part in parts:
                check_apart(room, *(stack.enter_context(Address("part", each)) for each in (part.e_chunk, part.sm)))
            result = self._from_cascade(
                backend_index(using), weights.table, len(parts), n, k, room.start, room.nbytes, ctypes.byref(written)
            )
        if result == CORRUPT:
            raise CorruptData(f"cascade e-chunks of {len(parts)} parts do not hold exactly {n} rows of {k} exponents")
        self._check(result, n, k, using)
        return written.value

    def from_bf16(self, weight: Buffer, out: Buffer, n: int, k: int, *, using: str | None = None) -> int:
        """Converts a bf16 matrix to this form.

        Args:
            weight: bf16, n rows of k.
            out: as for `from_cascade`.
            n: rows of the matrix.
            k: weights of a row.
            using: one of `backends()`; by default `backend()`.

        Returns:
            The bytes of the matrix, a multiple of 32.

        Raises:
            InvalidRequest, ResourceExhausted: as `from_cascade`.

        Cost: about one nanosecond for four weights.
        Thread: releases the GIL; safe from any thread.
        """
        self.bound(n, k)  # refuses sizes that are out of range
        written = ctypes.c_size_t()
        with ExitStack() as stack:
            room = stack.enter_context(Address("out", out, writable=True))
            rows = bf16_address(stack, "weight", weight, n * k)
            check_apart(room, rows)
            result = self._from_bf16(
                backend_index(using), rows.start, n, k, room.start, room.nbytes, ctypes.byref(written)
            )
        self._check(result, n, k, using)
        return written.value

    def to_bf16(self, matrix: Buffer, out: Buffer, n: int, k: int, *, using: str | None = None) -> None:
        """Recovers a bf16 matrix from this form, bit for bit.

        Args:
            matrix: a matrix in this form, perhaps followed by other bytes. Any bytes are safe.
            out: bf16, n rows of k, writable, not overlapping `matrix`. Overwritten.
            n: rows of the matrix.
            k: weights of a row.
            using: one of `backends()`; by default `backend()`.

        Raises:
            CorruptData: `matrix` is not a matrix of n rows of k weights. The content of `out` is undefined.
            InvalidRequest: a buffer's size, layout or access differs from the above, or the backend has no such form.
                `out` is untouched.
            ResourceExhausted: there is no memory for 80 KB and a row.

        Thread: releases the GIL; safe from any thread.
        """
        with ExitStack() as stack:
            stored = stack.enter_context(Address("matrix", matrix))
            rows = bf16_address(stack, "out", out, n * k, writable=True)
            check_apart(rows, stored)
            result = self._to_bf16(backend_index(using), stored.start, stored.nbytes, n, k, rows.start)
        self._check(result, n, k, using)

    def linear(
        self,
        x: Buffer,
        matrix: Buffer,
        out: Buffer,
        shape: LinearShape,
        order: Order,
        *,
        bias: Buffer | None = None,
        threads: int = 1,
        using: str | None = None,
    ) -> None:
        """Computes a linear from weights in this form; a row has the same bits alone and among others.

        Args:
            x: bf16, m rows of k.
            matrix: a matrix in this form, perhaps followed by other bytes. Any bytes are safe.
            out: bf16, m rows of n, writable, overlapping nothing. Overwritten.
            shape: m, n and k.
            order: summation order of the products of an output.
            bias: bf16, n numbers that are added before rounding.
            threads: most threads that compute, the calling thread included; the result does not depend on this number.
            using: one of `backends()`; by default `backend()`.

        Raises:
            CorruptData: `matrix` is not a matrix of n rows of k weights. The content of `out` is undefined.
            InvalidRequest: a buffer's size, layout or access differs from the above, the form does not take the order,
                or the backend has no such form. `out` is untouched.
            ResourceExhausted: there is no memory for a copy of the inputs.

        Cost: memory traffic of the matrix in this form, or 2mnk operations.
        Thread: as `zipmoe.kernels.linear.linear_bf16`.
        """
        with ExitStack() as stack:
            at = CheckedAddresses(stack, x, out, shape, bias)
            stored = stack.enter_context(Address("matrix", matrix))
            at.check_apart(stored)
            self.run(at.x, stored.start, stored.nbytes, at.out.start, shape, order, threads, bias=at.bias, using=using)

    def run(
        self,
        x: int,
        matrix: int,
        matrix_bytes: int,
        out: int,
        shape: LinearShape,
        order: Order,
        threads: int,
        *,
        bias: int = 0,
        using: str | None = None,
    ) -> None:
        """Computes `linear` from memory addresses, whose sizes are not checked; a `bias` of 0 means none.

        Raises:
            CorruptData, InvalidRequest, ResourceExhausted: as `linear`.
        """
        if not self.takes(order):
            raise InvalidRequest(f"{self} has no products in the order {order}")
        m, n, k = shape.m, shape.n, shape.k
        result = self._linear(
            backend_index(using),
            *(x, matrix, matrix_bytes, bias or None, out),
            *(m, n, k, order.k_block, order.parts, threads),
        )
        self._check(result, n, k, using)

    def _check(self, result: int, n: int, k: int, using: str | None) -> None:
        if result == CORRUPT:
            raise CorruptData(f"the bytes are not {n} rows of {k} weights in {self}")
        if result == _UNKNOWN:
            raise InvalidRequest(f"backend {using or backend()} has no {self} on this machine")
        if result == _NO_ROOM:
            raise ResourceExhausted(f"{self} of {n} rows of {k} weights needs more bytes than there is room for")
        if result != 0:
            raise ResourceExhausted(f"no memory to compute with {n} rows of {k} weights in {self}")
