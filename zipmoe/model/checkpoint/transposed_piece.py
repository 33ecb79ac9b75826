"""Transposes matrices of a checkpoint while they are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zipmoe.model.checkpoint.cast_piece import cast_numbers
from zipmoe.model.raw_tensor import DTYPES, empty_bytes
from zipmoe.store.pack.source import ByteRange, RangeRead

_READ_BYTES = 1 << 20
_TILE_COLS = 64
# With fewer numbers than torch spreads over threads of its own; see `cast_piece`.
_TILE_WEIGHTS = 1 << 14


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
        """Reads, casts and transposes some rows at a time; `DerivedPiece.derive` has arguments and errors.

        Cost: reads the whole matrix for any part of it; 2 MiB of memory, or two rows, and the result for a part.
        """
        if len(target) == self.nbytes:
            self._transpose(read, torch.frombuffer(target, dtype=torch.bfloat16).view(self.cols, self.rows))
            return
        whole, view = empty_bytes(self.nbytes)
        self._transpose(read, whole.view(torch.bfloat16).view(self.cols, self.rows))
        target[:] = view[skip : skip + len(target)]

    def _transpose(self, read: RangeRead, out: torch.Tensor) -> None:
        dtype = DTYPES[self.source_dtype]
        rows_a_read = max(1, min(self.rows, _READ_BYTES // (self.row_stride * dtype.itemsize)))
        raw, raw_view = empty_bytes(((rows_a_read - 1) * self.row_stride + self.cols) * dtype.itemsize)
        cast = torch.empty(rows_a_read, self.cols, dtype=torch.bfloat16)
        for first in range(0, self.rows, rows_a_read):
            count = min(rows_a_read, self.rows - first)
            nbytes = ((count - 1) * self.row_stride + self.cols) * dtype.itemsize
            offset = self.place.offset + first * self.row_stride * dtype.itemsize
            read(ByteRange(self.place.path, offset, nbytes), raw_view[:nbytes])
            rows = raw[:nbytes].view(dtype).as_strided((count, self.cols), (self.row_stride, 1))
            for row in range(count):
                cast_numbers(rows[row], cast[row])
            transpose_tiles(cast[:count], out[:, first : first + count])


def transpose_tiles(source: torch.Tensor, out: torch.Tensor) -> None:
    """Writes `source.T` tile by tile, without torch's threads.

    Args:
        source: any dtype, shape (n, m).
        out: the same dtype, shape (m, n), any strides. Overwritten.
    """
    rows = max(1, _TILE_WEIGHTS // _TILE_COLS)
    for first in range(0, source.shape[0], rows):
        for col in range(0, source.shape[1], _TILE_COLS):
            out[col : col + _TILE_COLS, first : first + rows] = source[first : first + rows, col : col + _TILE_COLS].T
