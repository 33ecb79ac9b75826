"""Finds how this machine's torch computes softmax and sums of rows, by comparing results with the native code."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

from zipmoe.kernels.program import Code, Frame, NativeSegment, Operand, Operation, Type, new_frame

LENGTHS = (1, 2, 4, 7, 8, 9, 15, 16, 17, 33, 60, 64, 100, 128, 257, 1000, 2048, 4097)
LANES = (16, 8)


@functools.cache
def exponentials() -> tuple[int, int]:
    """Returns the addresses of the exponential functions that torch's library exports, for 16 and for 8 numbers.

    Returns:
        0 in the place of a function that there is not.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))

    def address(name: str) -> int:
        try:
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
        except AttributeError:
            return 0

    capability = torch.backends.cpu.get_cpu_capability()
    of_16 = address("Sleef_expf16_u10") if capability == "AVX512" else 0
    return of_16, address("Sleef_expf8_u10") if capability in ("AVX512", "AVX2") else 0


@functools.cache
def softmax_lanes() -> int | None:
    """Returns the length of the vectors with which torch computes a softmax; None if the native code differs."""
    return _lanes(Code.SOFTMAX, 0, lambda x: torch.softmax(x, -1))


@functools.cache
def sum_lanes() -> int | None:
    """Returns the length of the vectors with which torch adds the numbers of a row; None if the native code differs."""
    means, sums = _lanes(Code.ROW_SUM, 1, lambda x: x.mean(-1)), _lanes(Code.ROW_SUM, 0, lambda x: x.sum(-1))
    return means if means == sums else None


def _lanes(code: Code, variant: int, compute: Callable[[torch.Tensor], torch.Tensor]) -> int | None:
    frame = new_frame(1, exponentials())
    generator = torch.Generator().manual_seed(0)
    left = [lanes for lanes in LANES if code is not Code.SOFTMAX or exponentials()[LANES.index(lanes)]]
    for length in LENGTHS:
        x = torch.randn(5, length, generator=generator) * torch.randn(5, length, generator=generator).exp()
        wanted = compute(x)
        left = [lanes for lanes in left if torch.equal(_rows(code, variant, lanes, x, wanted, frame), wanted)]
    return left[0] if left else None


def _rows(code: Code, variant: int, lanes: int, x: torch.Tensor, like: torch.Tensor, frame: Frame) -> torch.Tensor:
    out = torch.empty_like(like)
    operation = Operation(code=code, variant=variant)
    operation.a = Operand(type=Type.FP32, offset=x.data_ptr())
    operation.out = Operand(type=Type.FP32, offset=out.data_ptr())
    operation.numbers[0], operation.numbers[1], operation.numbers[2] = x.shape[0], x.shape[1], lanes
    NativeSegment([operation]).run(ctypes.addressof(frame))
    return out
