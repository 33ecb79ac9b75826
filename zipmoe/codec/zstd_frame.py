"""Checks a zstd frame's outline before a decoder sees it.

The decoder alone accepts more than a chunk may be: a frame of another size, bytes behind the frame, and frames that ask
for memory of their own choosing. The frame format is RFC 8878, section 3.1.1.
"""

from __future__ import annotations

import zstandard

from zipmoe.errors import CorruptData

_BLOCK_HEADER_BYTES = 3
_CHECKSUM_BYTES = 4
_RLE_BLOCK, _RESERVED_BLOCK = 1, 3


def check_frame(chunk: memoryview, content_bytes: int) -> None:
    """Checks that a chunk is one complete zstd frame, nothing before or behind it, of the expected content size.

    Args:
        chunk: Unsigned bytes.
        content_bytes: The size that the frame has to declare.

    Raises:
        CorruptData: It is anything else. The blocks' own content is left to the decoder.

    Cost: a few bytes read for each 128 KiB of content; allocates nothing.
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
