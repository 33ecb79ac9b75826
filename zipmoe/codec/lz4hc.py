"""LZ4 blocks of the high-compression encoder: one of the codecs that the paper measures, for comparison.

LZ4 has no entropy coder. So exponents compress only as far as strings of exponents repeat by chance. The search for
such strings takes a hundred times as long as a Huffman code. Level 3 is ten times faster than the default level 9 and
compresses less.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, ClassVar

import lz4.block

from zipmoe.codec.base import Codec, Parameters, check_recover_sizes
from zipmoe.errors import CorruptData, InvalidRequest, UnsupportedStore
from zipmoe.kernels.planes import merge_planes

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SIZE_BYTES = 4
_LARGEST_PLANE_BYTES = 0x7E000000  # LZ4's limit for one block
_DEFAULTS: dict[str, int | str] = {"level": 9}
_LEVELS: Container[object] = range(3, 13)


class Lz4hcCodec(Codec):
    """Compresses exponents with LZ4's high-compression encoder."""

    name: ClassVar[str] = "lz4hc"

    def __init__(self, parameters: Parameters = _DEFAULTS) -> None:
        self.parameters: Parameters = dict(parameters)

    @classmethod
    def create(cls, parameters: Parameters) -> Lz4hcCodec:
        """See `Codec.create`.

        Args:
            parameters: `level` in [3, 12], as LZ4's manual defines it.

        Raises:
            UnsupportedStore: A parameter or its value is outside the above.
        """
        for name, value in parameters.items():
            if name != "level" or type(value) is not int or value not in _LEVELS:
                raise UnsupportedStore(f"codec lz4hc does not know parameter {name}={value!r}")
        return cls({**_DEFAULTS, **parameters})

    def compress(self, e_plane: Buffer, cols: int | None = None) -> bytes:
        """See `Codec.compress`.

        Raises:
            InvalidRequest: The plane is larger than LZ4's limit for one block.
        """
        plane = memoryview(e_plane).cast("B")
        if plane.nbytes > _LARGEST_PLANE_BYTES:
            raise InvalidRequest(f"lz4hc takes at most {_LARGEST_PLANE_BYTES} exponents a chunk, not {plane.nbytes}")
        level = int(self.parameters["level"])
        block: bytes = lz4.block.compress(plane, mode="high_compression", compression=level, store_size=True)
        return block

    def decompress(self, chunk: Buffer, out: memoryview) -> None:
        """See `Codec.decompress`.

        Cost: python-lz4 decompresses into memory of its own, of `out.nbytes` bytes. That memory is copied to `out`.
        """
        out.cast("B")[:] = _exponents(chunk, out.nbytes)

    def recover(self, e_chunk: Buffer, sm: Buffer, out: memoryview) -> None:
        """See `Codec.recover`; merges directly from python-lz4's memory."""
        merge_planes(sm, _exponents(e_chunk, check_recover_sizes(sm, out)), out)


def _exponents(chunk: Buffer, count: int) -> bytes:
    view = memoryview(chunk).cast("B")
    declared = int.from_bytes(view[:_SIZE_BYTES], "little")
    if view.nbytes <= _SIZE_BYTES or declared != count:
        raise CorruptData(f"lz4hc e-chunk of {view.nbytes} bytes declares {declared} exponents, expected {count}")
    try:
        exponents: bytes = lz4.block.decompress(view[_SIZE_BYTES:], uncompressed_size=count)
    except lz4.block.LZ4BlockError as error:
        raise CorruptData(f"lz4hc e-chunk of {view.nbytes} bytes does not decode: {error}") from error
    if len(exponents) != count:
        raise CorruptData(f"lz4hc e-chunk holds {len(exponents)} exponents, expected {count}")
    return exponents
