"""zstd: frames that no honest store contains, and the parameters."""

from __future__ import annotations

import struct

import pytest
import zstandard

from zipmoe.codec.registry import create_codec
from zipmoe.errors import CorruptData

PLANE = bytes([120, 119, 121, 118] * 500)
CODEC = create_codec("zstd")

# What version 0.1.0 wrote for 64 exponents; must stay readable for ever.
CHUNK_OF_0_1_0 = bytes.fromhex("28b52ffd20406d000038787774767674770100d6598c")
PLANE_OF_0_1_0 = bytes((120 - i * i % 7) for i in range(64))

MAGIC = bytes.fromhex("28b52ffd")
SINGLE_SEGMENT_8_BYTES = 0b11_1_00000  # frame header descriptor: 8-byte content size, no window, checksum or dictionary
LAST_RAW_BLOCK, LAST_RLE_BLOCK, LAST_RESERVED_BLOCK = 0b001, 0b011, 0b111


def frame(declared: int, block_kind: int, block_size: int, content: bytes) -> bytes:
    header = MAGIC + bytes([SINGLE_SEGMENT_8_BYTES]) + struct.pack("<Q", declared)
    return header + (block_kind | block_size << 3).to_bytes(3, "little") + content


def decompress(chunk: bytes, count: int = len(PLANE)) -> bytes:
    out = bytearray(count)
    CODEC.decompress(chunk, memoryview(out))
    return bytes(out)


def test_any_zstd_decoder_reads_a_chunk() -> None:
    assert zstandard.ZstdDecompressor().decompress(CODEC.compress(PLANE)) == PLANE


def test_a_chunk_of_the_first_version_is_still_read() -> None:
    assert decompress(CHUNK_OF_0_1_0, 64) == PLANE_OF_0_1_0


def test_a_hand_made_frame_is_read() -> None:
    assert decompress(frame(3, LAST_RAW_BLOCK, 3, b"abc"), 3) == b"abc"
    assert decompress(frame(4, LAST_RLE_BLOCK, 4, b"a"), 4) == b"aaaa"


@pytest.mark.parametrize("declared", [0, len(PLANE) - 1, len(PLANE) + 1, 1 << 40, (1 << 63) - 1])
def test_a_frame_that_declares_another_size_is_corrupt(declared: int) -> None:
    with pytest.raises(CorruptData, match=f"declares {declared} exponents, expected {len(PLANE)}"):
        decompress(frame(declared, LAST_RLE_BLOCK, len(PLANE), b"a"))


@pytest.mark.parametrize("held", [0, 1, len(PLANE) - 1, len(PLANE) + 1, 1 << 17])
def test_a_frame_that_holds_less_or_more_than_it_declares_is_corrupt(held: int) -> None:
    with pytest.raises(CorruptData):
        decompress(frame(len(PLANE), LAST_RLE_BLOCK, held, b"a"))


def test_a_frame_without_a_declared_size_is_corrupt() -> None:
    chunk = zstandard.ZstdCompressor(write_content_size=False).compress(PLANE)
    with pytest.raises(CorruptData, match="declares"):
        decompress(chunk)


def test_two_frames_are_corrupt() -> None:
    half = len(PLANE) // 2
    chunk = CODEC.compress(PLANE[:half]) + CODEC.compress(PLANE[half:])
    with pytest.raises(CorruptData):
        decompress(chunk)
    with pytest.raises(CorruptData, match="frame ends at byte"):
        decompress(chunk, half)


@pytest.mark.parametrize("behind", [False, True])
def test_a_skippable_frame_is_corrupt(behind: bool) -> None:
    skippable = bytes.fromhex("502a4d18") + struct.pack("<I", 4) + b"note"
    chunk = CODEC.compress(PLANE)
    with pytest.raises(CorruptData):
        decompress(chunk + skippable if behind else skippable + chunk)


def test_a_frame_that_needs_a_dictionary_is_corrupt() -> None:
    words = zstandard.train_dictionary(1024, [bytes([i, i + 1, i + 2]) * 50 for i in range(200)])
    chunk = zstandard.ZstdCompressor(dict_data=words).compress(PLANE)
    with pytest.raises(CorruptData, match="asks for dictionary"):
        decompress(chunk)


def test_a_reserved_block_is_corrupt() -> None:
    with pytest.raises(CorruptData, match="block at byte 13 is of the reserved type"):
        decompress(frame(len(PLANE), LAST_RESERVED_BLOCK, 4, b"abcd"))


def test_a_wrong_frame_checksum_is_corrupt() -> None:
    chunk = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(PLANE))
    assert decompress(bytes(chunk)) == PLANE
    chunk[-1] ^= 1
    with pytest.raises(CorruptData, match="does not decode"):
        decompress(bytes(chunk))


def test_a_frame_gets_no_memory_for_the_window_it_asks_for() -> None:
    # Window descriptor 0xa0 is 1 GiB, more than the decoder would grant. It is never asked for it: a whole frame is
    # decoded straight into the output.
    header = MAGIC + bytes([0b10_0_00000, 0xA0]) + struct.pack("<I", 4)
    assert decompress(header + bytes([LAST_RLE_BLOCK | 4 << 3, 0, 0]) + b"a", 4) == b"aaaa"


def test_chunks_do_not_depend_on_the_parameters_of_the_codec_that_reads_them() -> None:
    other = create_codec("zstd", {"strategy": "dfast", "min_match": 4, "hash_log": 12, "target_length": 0})
    assert decompress(other.compress(PLANE)) == PLANE


def test_the_codec_reproduces_itself_from_its_parameters() -> None:
    assert create_codec("zstd", CODEC.parameters).compress(PLANE) == CODEC.compress(PLANE)
