"""Casts tensors of a checkpoint while they are read, with torch's own cast.

The cast rounds to the nearest even number. The bits of a NaN are those that torch gives it on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zipmoe.model.raw_tensor import DTYPES, empty_bytes
from zipmoe.store.pack.source import ByteRange, RangeRead

CAST_DTYPES = ("F16", "F32", "F64")
"""Dtypes of routed weights that are cast to bf16; integers and 8-bit floats are codes of a quantised checkpoint."""

_READ_WEIGHTS = 1 << 18
# torch spreads a cast of 32 768 numbers or more over threads of its own. The packer's workers are threads already.
_CAST_WEIGHTS = 1 << 14


@dataclass(frozen=True)
class CastPiece:
    """A byte range of numbers of one dtype, cast to another dtype as `from_pretrained` casts them.

    Attributes:
        source: the numbers in the checkpoint, adjacent.
        source_dtype: their dtype, a safetensors name with a torch dtype in `DTYPES`.
        dtype: dtype of the result, likewise.
    """

    source: ByteRange
    source_dtype: str
    dtype: str = "BF16"

    seekable = True

    @property
    def recipe(self) -> str:
        """The dtypes."""
        return f"{self.source_dtype} cast to {self.dtype}"

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return self.source.nbytes // DTYPES[self.source_dtype].itemsize * DTYPES[self.dtype].itemsize

    @property
    def sources(self) -> tuple[ByteRange, ...]:
        """The byte range of the checkpoint."""
        return (self.source,)

    def derive(self, read: RangeRead, target: memoryview, skip: int) -> None:
        """Reads and casts the numbers part by part; `DerivedPiece.derive` has arguments and errors.

        Cost: 1 MiB of memory for fp32; no thread beside the caller's.
        """
        source_bytes, result_bytes = DTYPES[self.source_dtype].itemsize, DTYPES[self.dtype].itemsize
        first, end = skip // result_bytes, -(-(skip + len(target)) // result_bytes)
        raw, raw_view = empty_bytes(min(_READ_WEIGHTS, end - first) * source_bytes)
        cast, cast_view = empty_bytes(min(_READ_WEIGHTS, end - first) * result_bytes)
        for begin in range(first, end, _READ_WEIGHTS):
            count = min(_READ_WEIGHTS, end - begin)
            place = ByteRange(self.source.path, self.source.offset + begin * source_bytes, count * source_bytes)
            read(place, raw_view[: place.nbytes])
            cast_numbers(
                raw[: place.nbytes].view(DTYPES[self.source_dtype]),
                cast[: count * result_bytes].view(DTYPES[self.dtype]),
            )
            # `skip` and the end of `target` may lie inside a number
            low, high = max(skip, begin * result_bytes), min(skip + len(target), (begin + count) * result_bytes)
            target[low - skip : high - skip] = cast_view[low - begin * result_bytes : high - begin * result_bytes]


def cast_numbers(source: torch.Tensor, out: torch.Tensor) -> None:
    """Casts as `source.to(out.dtype)` does, without torch's threads.

    Args:
        source: any dtype, shape (n,) or (n, m), any strides.
        out: any dtype, the shape of `source`, contiguous. Overwritten.
    """
    if source.is_contiguous():
        source, out = source.view(-1), out.view(-1)
    lines = max(1, _CAST_WEIGHTS // (source[0].numel() if len(source) else 1))
    for begin in range(0, len(source), lines):
        out[begin : begin + lines] = source[begin : begin + lines]
