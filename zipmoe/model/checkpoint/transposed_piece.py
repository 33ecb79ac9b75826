"""Transposes matrices of a checkpoint while they are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zipmoe.model.checkpoint.cast_piece import cast_numbers
from zipmoe.model.raw_tensor import DTYPES, empty_bytes
from zipmoe.store.pack.source import ByteRange, RangeRead

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class TransposedPiece:
    """The transposed and cast form of a matrix that a checkpoint holds row by row: bf16, shape (cols, rows).

    Attributes:
        place: from the first byte of the first row to the last byte of the last row.
        source_dtype: dtype of the numbers, a safetensors name with a torch dtype in `DTYPES`.
        rows: rows in the checkpoint.
        cols: numbers of a row.
        row_stride: numbers from the start of a row to the start of the next row; at least `cols`.
    """

    place: ByteRange
    source_dtype: str
    rows: int
    cols: int
    row_stride: int

    seekable = False

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return 2 * self.rows * self.cols

    @property
    def sources(self) -> tuple[ByteRange, ...]:
        """The range from the first to the last row."""
        return (self.place,)

    @property
    def recipe(self) -> str:
        """Shape and dtype of the matrix in the checkpoint."""
        return f"transposed {self.source_dtype} {self.rows}x{self.cols}, {self.row_stride} a row"

    def derive(self, read: RangeRead, target: memoryview, skip: int) -> None:
        """Reads and casts some rows at a time, then transposes; `DerivedPiece.derive` has arguments and errors.

        Cost: reads the whole matrix for any part of it; 1 MiB of memory, the matrix in bf16, and again for a part.
        """
        if len(target) == self.nbytes:
            result = torch.frombuffer(target, dtype=torch.bfloat16)
        else:
            result = torch.empty(self.rows * self.cols, dtype=torch.bfloat16)
        # torch transposes a whole matrix block by block, in the caller's thread
        result.view(self.cols, self.rows).copy_(self._cast_rows(read).T)
        if len(target) < self.nbytes:
            target[:] = result.view(torch.uint8).numpy().data[skip : skip + len(target)]

    def _cast_rows(self, read: RangeRead) -> torch.Tensor:
        """Returns the matrix as the checkpoint holds it, in bf16, shape (rows, cols)."""
        dtype = DTYPES[self.source_dtype]
        rows_a_read = max(1, min(self.rows, _READ_BYTES // (self.row_stride * dtype.itemsize)))
        raw, raw_view = empty_bytes(rows_a_read * self.row_stride * dtype.itemsize)
        cast = torch.empty(self.rows, self.cols, dtype=torch.bfloat16)
        for first in range(0, self.rows, rows_a_read):
            count = min(rows_a_read, self.rows - first)
            nbytes = ((count - 1) * self.row_stride + self.cols) * dtype.itemsize
            offset = self.place.offset + first * self.row_stride * dtype.itemsize
            read(ByteRange(self.place.path, offset, nbytes), raw_view[:nbytes])
            rows = raw.view(dtype).view(rows_a_read, self.row_stride)[:count, : self.cols]
            cast_numbers(rows, cast[first : first + count])
        return cast
