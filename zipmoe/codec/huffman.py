"""Huffman codes: the smallest chunks, and the fastest to recover where there is no SIMD.

Frequent exponents get short codewords, of 2.6 bits on average where weights are normally distributed, which is close to
the entropy. A codeword tells its length only when it is decoded, so six streams are decoded side by side, and a table
look-up decodes all codewords in 11 bits at once. Rows that differ in scale have the same exponents but for a constant:
they are coded from a base of their own where that pays. FORMAT.md, section `huffman`, is normative.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from zipmoe.codec.base import Codec, Parameters, check_recover_sizes
from zipmoe.errors import UnsupportedStore
from zipmoe.kernels.huffman import compress_huffman, decompress_huffman, recover_huffman

if TYPE_CHECKING:
    from typing_extensions import Buffer


class HuffmanCodec(Codec):
    """Compresses exponents to codewords of 1 to 11 bits."""

    name: ClassVar[str] = "huffman"

    def __init__(self) -> None:
        self.parameters: Parameters = {}

    @classmethod
    def create(cls, parameters: Parameters) -> HuffmanCodec:
        """See `Codec.create`; there are no parameters."""
        if parameters:
            raise UnsupportedStore(f"codec huffman has no parameters, got {', '.join(sorted(parameters))}")
        return cls()

    def compress(self, e_plane: Buffer, cols: int | None = None) -> bytes:
        """See `Codec.compress`."""
        return compress_huffman(e_plane, cols=cols)

    def decompress(self, chunk: Buffer, out: memoryview) -> None:
        """See `Codec.decompress`; needs no scratch memory but stack."""
        decompress_huffman(chunk, out)

    def recover(self, e_chunk: Buffer, sm: Buffer, out: memoryview) -> None:
        """See `Codec.recover`; merges block by block, while the exponents are in the cache."""
        check_recover_sizes(sm, out)
        recover_huffman(e_chunk, sm, out)
