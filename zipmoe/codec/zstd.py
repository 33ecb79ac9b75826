"""Standard zstd frames with blocks that are almost only Huffman-coded literals.

Strings of exponents repeat only by chance. Coding such strings as matches costs more bits than coding their literals,
and slows decompression down. So the parameters let the match finder find almost nothing: matches have at least 7 bytes,
and the hash table has 64 entries. `target_length` has to be 0, because any larger value switches literal compression
off under the fast strategy.
"""

from __future__ import annotations

import threading
from collections.abc import Container
from typing import TYPE_CHECKING, ClassVar

import zstandard

from zipmoe.codec.base import Codec, Parameters
from zipmoe.codec.zstd_frame import check_frame
from zipmoe.errors import CorruptData, UnsupportedStore

if TYPE_CHECKING:
    from typing_extensions import Buffer

_STRATEGIES = {"fast": zstandard.STRATEGY_FAST, "dfast": zstandard.STRATEGY_DFAST}
_DEFAULTS: dict[str, int | str] = {"strategy": "fast", "min_match": 7, "hash_log": 6, "target_length": 0}
_ALLOWED: dict[str, Container[object]] = {
    "strategy": tuple(_STRATEGIES),
    "min_match": range(3, 8),
    "hash_log": range(6, 21),
    "target_length": range(1 << 17),
}
_LARGEST_WINDOW_BYTES = 8 << 20  # every zstd decoder supports it; a hostile frame cannot request more


class ZstdCodec(Codec):
    """Compresses exponents with zstd's entropy coder."""

    name: ClassVar[str] = "zstd"

    def __init__(self, parameters: Parameters = _DEFAULTS) -> None:
        self.parameters: Parameters = dict(parameters)
        # Two threads must not use one zstandard context at the same time.
        self._contexts = threading.local()

    @classmethod
    def create(cls, parameters: Parameters) -> ZstdCodec:
        """See `Codec.create`.

        Args:
            parameters: `strategy` ("fast" or "dfast"), `min_match` in [3, 7], `hash_log` in [6, 20] and
                `target_length` in [0, 131071], each as zstd's manual defines it.

        Raises:
            UnsupportedStore: A parameter or its value is outside the above.
        """
        for name, value in parameters.items():
            if type(value) not in (int, str) or value not in _ALLOWED.get(name, ()):
                raise UnsupportedStore(f"codec zstd does not know parameter {name}={value!r}")
        return cls({**_DEFAULTS, **parameters})

    def compress(self, e_plane: Buffer, cols: int | None = None) -> bytes:
        """See `Codec.compress`."""
        compressor: zstandard.ZstdCompressor | None = getattr(self._contexts, "compressor", None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(compression_params=self._frame_parameters())
            self._contexts.compressor = compressor
        return compressor.compress(memoryview(e_plane))

    def decompress(self, chunk: Buffer, out: memoryview) -> None:
        """See `Codec.decompress`."""
        frame = memoryview(chunk).cast("B")
        check_frame(frame, out.nbytes)
        decompressor: zstandard.ZstdDecompressor | None = getattr(self._contexts, "decompressor", None)
        if decompressor is None:
            decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW_BYTES)
            self._contexts.decompressor = decompressor
        # With a whole frame as input and room for all of its content, readinto decompresses directly into `out`. The
        # simpler decompress() would create a bytes object first.
        with decompressor.stream_reader(frame, closefd=False) as reader:
            try:
                count = reader.readinto(out)
            except zstandard.ZstdError as error:
                raise CorruptData(f"zstd e-chunk of {frame.nbytes} bytes does not decode: {error}") from error
        if count != out.nbytes:
            raise CorruptData(f"zstd e-chunk holds {count} exponents, expected {out.nbytes}")

    def _frame_parameters(self) -> zstandard.ZstdCompressionParameters:
        parameters = self.parameters
        return zstandard.ZstdCompressionParameters(
            strategy=_STRATEGIES[str(parameters["strategy"])],
            min_match=int(parameters["min_match"]),
            hash_log=int(parameters["hash_log"]),
            target_length=int(parameters["target_length"]),
            write_content_size=True,
            write_checksum=False,
            write_dict_id=False,
        )
