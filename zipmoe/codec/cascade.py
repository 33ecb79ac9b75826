"""A cascade of 2-bit codes. With SIMD, recovering weights from the codes is as fast as copying the weights.

Four of five weights have one of three neighbouring exponents. So level 1 has a 2-bit code for every weight: one of
three exponents, or an escape. Level 2 has another 2-bit code for every escape of level 1, and so on for five levels.
All codes have the same length, so a few instructions recover 64 weights without a search for the next code. FORMAT.md,
section `cascade`, is normative.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from zipmoe.codec.base import Codec, Parameters, check_recover_sizes
from zipmoe.errors import UnsupportedStore
from zipmoe.kernels.cascade import compress_cascade, decompress_cascade, recover_cascade

if TYPE_CHECKING:
    from typing_extensions import Buffer

_DEFAULT_BLOCK_ROWS = 16
_MOST_BLOCK_ROWS = 1024  # rows of the largest block (65 536 weights) when rows are shortest (64)
_MOST_COLS = 65_536
_GROUP = 64
_COLS_OF_A_PLANE = 2048
_MOST_PADDING = 1 / 32


class CascadeCodec(Codec):
    """Compresses exponents to 2-bit codes.

    `block_rows` is the number of rows of a block, which is recovered independently of other blocks. Small blocks adapt
    better where rows need different tables. Large blocks have less overhead.
    """

    name: ClassVar[str] = "cascade"

    def __init__(self, block_rows: int = _DEFAULT_BLOCK_ROWS) -> None:
        self.parameters: Parameters = {"block_rows": block_rows}
        self._block_rows = block_rows

    @classmethod
    def create(cls, parameters: Parameters) -> CascadeCodec:
        """See `Codec.create`.

        Args:
            parameters: `block_rows` in [1, 1024].

        Raises:
            UnsupportedStore: A parameter or its value is outside the above.
        """
        for name, value in parameters.items():
            if name != "block_rows" or type(value) is not int or not 1 <= value <= _MOST_BLOCK_ROWS:
                raise UnsupportedStore(f"codec cascade does not know parameter {name}={value!r}")
        return cls(**{name: int(value) for name, value in parameters.items()})

    def compress(self, e_plane: Buffer, cols: int | None = None) -> bytes:
        """See `Codec.compress`."""
        return compress_cascade(e_plane, cols=chunk_cols(cols), block_rows=self._block_rows)

    def decompress(self, chunk: Buffer, out: memoryview) -> None:
        """See `Codec.decompress`; needs only stack as scratch memory."""
        decompress_cascade(chunk, out)

    def recover(self, e_chunk: Buffer, sm: Buffer, out: memoryview) -> None:
        """See `Codec.recover`; one pass, without an intermediate exponent plane."""
        check_recover_sizes(sm, out)
        recover_cascade(e_chunk, sm, out)


def chunk_cols(cols: int | None) -> int:
    """Chooses the weights a row of a chunk: the matrix's columns, or 2048 if padding would add more than 1/32 to a row.

    Rows are padded to whole groups of 64 codes. The result is also 2048 if the number of columns is not known, or over
    65,536.

    Args:
        cols: weights a row of the matrix; None if not known.
    """
    if cols is None or not 1 <= cols <= _MOST_COLS:
        return _COLS_OF_A_PLANE
    padding = -cols % _GROUP
    return cols if padding <= cols * _MOST_PADDING else _COLS_OF_A_PLANE
