"""Huffman codes: the smallest chunks, and the fastest recovery where there is no SIMD.

Frequent exponents get short codewords. With normally distributed weights a codeword has 2.6 bits on average, close to
the entropy. The length of a codeword is known only after the codeword has been looked up, so the kernel reads six
streams side by side, and one table look-up recovers all codewords within 11 bits. Rows that differ only in scale have
the same exponents up to a constant. So each row gets a base of its own where bases save enough. FORMAT.md, section
`huffman`, is normative.
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
        """See `Codec.decompress`; needs only stack as scratch memory."""
        decompress_huffman(chunk, out)

    def recover(self, e_chunk: Buffer, sm: Buffer, out: memoryview) -> None:
        """See `Codec.recover`; merges block by block, while a block's exponents are in the CPU cache."""
        check_recover_sizes(sm, out)
        recover_huffman(e_chunk, sm, out)
