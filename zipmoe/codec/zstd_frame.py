"""Checks the outline of a zstd frame before the frame is decompressed.

The zstd library alone accepts frames that a chunk must not hold: frames of another size, frames with bytes behind them,
and frames that request memory of any size. RFC 8878, section 3.1.1, defines the frame format.
"""

from __future__ import annotations

import zstandard

from zipmoe.errors import CorruptData

_BLOCK_HEADER_BYTES = 3
_CHECKSUM_BYTES = 4
_RLE_BLOCK, _RESERVED_BLOCK = 1, 3


def check_frame(chunk: memoryview, content_bytes: int) -> None:
    """Checks that a chunk is exactly one complete zstd frame of the expected content size.

    Args:
        chunk: Unsigned bytes.
        content_bytes: The content size that the frame has to declare.

    Raises:
        CorruptData: The chunk is anything else. The content of the blocks is not checked here.

    Cost: reads a few bytes for each 128 KiB of content; allocates nothing.
    """
    try:
        frame = zstandard.get_frame_parameters(chunk)
        begin = zstandard.frame_header_size(chunk)
    except zstandard.ZstdError as error:
        raise CorruptData(f"zstd e-chunk of {len(chunk)} bytes has no frame header: {error}") from error
    if frame.content_size != content_bytes:
        raise CorruptData(f"zstd e-chunk declares {frame.content_size} exponents, expected {content_bytes}")
    if frame.dict_id:
        raise CorruptData(f"zstd e-chunk asks for dictionary {frame.dict_id}, expected none")
    end = _end_of_blocks(chunk, begin) + (_CHECKSUM_BYTES if frame.has_checksum else 0)
    if end != len(chunk):
        raise CorruptData(f"zstd frame ends at byte {end}, the e-chunk has {len(chunk)}")


def _end_of_blocks(chunk: memoryview, begin: int) -> int:
    last = False
    while not last:
        header_end = begin + _BLOCK_HEADER_BYTES
        if header_end > len(chunk):
            raise CorruptData(f"zstd block header at byte {begin} is cut off by the end of the e-chunk, {len(chunk)}")
        header = int.from_bytes(chunk[begin:header_end], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if kind == _RESERVED_BLOCK:
            raise CorruptData(f"zstd block at byte {begin} is of the reserved type")
        begin = header_end + (1 if kind == _RLE_BLOCK else size)
    return begin
