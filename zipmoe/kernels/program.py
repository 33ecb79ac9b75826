"""Replays operations of a recorded pass natively: the structures of `native/program/program.h`, and one call.

An operation works on tensors with fixed addresses, sizes and strides, and gives the bits of torch on this machine's
CPU. `zipmoe.model.program` records a pass, lowers it to these operations and compares each of them with torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum

from zipmoe.errors import CorruptData, InternalError, ResourceExhausted
from zipmoe.kernels.backends import backend_index
from zipmoe.kernels.exponent_kernels import CORRUPT
from zipmoe.kernels.library import load_library

DIMS, NUMBERS, BASES = 4, 12, 8
_NO_MEMORY = -3


class Type(IntEnum):
    """The type of an operand's elements."""

    BF16 = 0
    FP32 = 1
    INT64 = 2
    BYTE = 3
    COMPLEX64 = 4


class Code(IntEnum):
    """What an operation computes; `program.h` says more."""

    BINARY = 0
    SCALAR = 1
    UNARY = 2
    COPY = 3
    TABLE = 4
    FILL = 5
    COMPLEX_MUL = 6
    GATHER = 7
    ROW_SUM = 8
    SOFTMAX = 9
    TOP_K = 10
    LINEAR = 11
    KV_WRITE = 12
    ATTEND = 13
    ADD_ROWS = 14


class Function(IntEnum):
    """Variant of an elementwise operation."""

    ADD = 0
    MUL = 1
    SUB = 2
    DIV = 3
    NEGATE = 4
    SQUARE = 5
    RSQRT = 6


class WeightForm(IntEnum):
    """Form of a linear's weight at a fixed address. A weight at a base of the frame is `ROWS`: bf16 or cascade."""

    ROWS = 0
    TILE = 1
    NIBBLE = 2


class Operand(ctypes.Structure):
    """A tensor: base and offset, type, strides in elements."""

    _fields_ = (
        ("base", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("offset", ctypes.c_int64),
        ("strides", ctypes.c_int64 * DIMS),
    )


class Operation(ctypes.Structure):
    """One operation of a program."""

    _fields_ = (
        ("code", ctypes.c_int32),
        ("variant", ctypes.c_int32),
        ("scalar", ctypes.c_float),
        ("reserved", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * DIMS),
        ("out", Operand),
        ("a", Operand),
        ("b", Operand),
        ("numbers", ctypes.c_int64 * NUMBERS),
    )


class Context(ctypes.Structure):
    """The token slots that each row sees: addresses of the two arrays of `zipmoe.kernels.attention.Contexts`."""

    _fields_ = (("entries", ctypes.c_void_p), ("runs", ctypes.c_void_p), ("rows", ctypes.c_int64))


class Frame(ctypes.Structure):
    """What varies between two replays of the same operations. Base 0 is address 0."""

    _fields_ = (
        ("bases", ctypes.c_void_p * BASES),
        ("parts", ctypes.c_int64 * BASES),
        ("contexts", ctypes.POINTER(Context)),
        ("slots", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
        ("backend", ctypes.c_int64),
        ("exponential_16", ctypes.c_void_p),
        ("exponential_8", ctypes.c_void_p),
        ("spent_ns", ctypes.POINTER(ctypes.c_int64)),
    )


def _declared() -> ctypes.CDLL:
    library = load_library()
    for name, structure in (("operation", Operation), ("frame", Frame)):
        size = getattr(library, f"zipmoe_program_{name}_bytes")
        size.argtypes, size.restype = [], ctypes.c_size_t
        if size() != ctypes.sizeof(structure):
            raise ImportError(f"the native kernels have another {name}; run `make setup` again")
    library.zipmoe_program_run.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    library.zipmoe_program_run.restype = ctypes.c_int
    return library


_library = _declared()


def new_frame(threads: int, exponentials: tuple[int, int] = (0, 0)) -> Frame:
    """Makes a frame for `backend()`.

    Args:
        threads: most threads that compute a linear or an attention, the calling thread included.
        exponentials: addresses of the exponential functions of torch's vectors of 16 and of 8 numbers; 0 for none.
    """
    frame = Frame()
    frame.threads, frame.backend = threads, backend_index(None)
    frame.exponential_16, frame.exponential_8 = exponentials
    return frame


class NativeSegment:
    """Operations that one call computes. All memory that they name has to outlive the segment."""

    __slots__ = ("_array", "_call", "_count", "_start")

    def __init__(self, operations: Sequence[Operation]) -> None:
        """Copies the operations into one array."""
        self._count = len(operations)
        self._array = (Operation * self._count)(*operations)
        self._start = ctypes.addressof(self._array)
        self._call = _library.zipmoe_program_run

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Operation:
        """Returns an operation of the array, which the caller may change between runs."""
        return self._array[index]

    def run(self, frame_address: int) -> None:
        """Runs the operations.

        Raises:
            CorruptData: a compressed matrix does not hold the weights of its rows.
            ResourceExhausted: there is no memory for scratch.
            InternalError: an operation that no native code computes, or an index outside a table.
        """
        result = self._call(self._start, self._count, frame_address)
        if result:
            raise _error(result)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return ctypes.sizeof(self._array)


def _error(result: int) -> CorruptData | ResourceExhausted | InternalError:
    if result == CORRUPT:
        return CorruptData("a compressed matrix does not hold exactly the weights of its rows")
    if result == _NO_MEMORY:
        return ResourceExhausted("no memory for the scratch of a replayed operation")
    return InternalError(f"a replayed operation fails with {result}")
