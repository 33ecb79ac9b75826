"""No compression: the E-chunk is the exponent plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from zipmoe.codec.base import Codec, Parameters, check_recover_sizes
from zipmoe.errors import CorruptData, UnsupportedStore
from zipmoe.kernels.planes import merge_planes

if TYPE_CHECKING:
    from typing_extensions import Buffer


class RawCodec(Codec):
    """Stores exponents uncompressed: for weights that do not compress, and as the baseline of every comparison."""

    name: ClassVar[str] = "raw"

    def __init__(self) -> None:
        self.parameters: Parameters = {}

    @classmethod
    def create(cls, parameters: Parameters) -> RawCodec:
        """See `Codec.create`; there are no parameters."""
        if parameters:
            raise UnsupportedStore(f"codec raw has no parameters, got {', '.join(sorted(parameters))}")
        return cls()

    def compress(self, e_plane: Buffer, cols: int | None = None) -> bytes:
        """See `Codec.compress`."""
        return bytes(e_plane)

    def decompress(self, chunk: Buffer, out: memoryview) -> None:
        """See `Codec.decompress`."""
        plane = _plane(chunk, out.nbytes)
        out.cast("B")[:] = plane

    def recover(self, e_chunk: Buffer, sm: Buffer, out: memoryview) -> None:
        """See `Codec.recover`; needs no scratch memory."""
        plane = _plane(e_chunk, check_recover_sizes(sm, out))
        merge_planes(sm, plane, out)


def _plane(chunk: Buffer, expected_bytes: int) -> memoryview:
    plane = memoryview(chunk).cast("B")
    if plane.nbytes != expected_bytes:
        raise CorruptData(f"raw e-chunk has {plane.nbytes} bytes, expected {expected_bytes}")
    return plane
