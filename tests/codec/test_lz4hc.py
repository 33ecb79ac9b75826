"""lz4hc: chunks that no honest store contains, and the parameters."""

from __future__ import annotations

import struct

import lz4.block
import pytest

from zipmoe.codec.registry import create_codec
from zipmoe.errors import CorruptData, UnsupportedStore

PLANE = bytes([120, 119, 121, 118] * 500)
CODEC = create_codec("lz4hc")

# What the first version wrote for 64 exponents; must stay readable for ever.
FIRST_CHUNK = bytes.fromhex("400000007f78777476767477070021507676747778")
PLANE_OF_FIRST_CHUNK = bytes((120 - i * i % 7) for i in range(64))


def decompress(chunk: bytes, count: int = len(PLANE)) -> bytes:
    out = bytearray(count)
    CODEC.decompress(chunk, memoryview(out))
    return bytes(out)


def test_a_chunk_is_its_size_and_a_plain_lz4_block() -> None:
    chunk = CODEC.compress(PLANE)
    assert struct.unpack_from("<I", chunk) == (len(PLANE),)
    assert lz4.block.decompress(chunk[4:], uncompressed_size=len(PLANE)) == PLANE


def test_a_chunk_of_the_first_version_is_still_read() -> None:
    assert decompress(FIRST_CHUNK, 64) == PLANE_OF_FIRST_CHUNK


@pytest.mark.parametrize("declared", [0, len(PLANE) - 1, len(PLANE) + 1, 1 << 31, (1 << 32) - 1])
def test_a_chunk_that_declares_another_size_is_corrupt_before_anything_is_decoded(declared: int) -> None:
    with pytest.raises(CorruptData, match=f"declares {declared} exponents, expected {len(PLANE)}"):
        decompress(struct.pack("<I", declared) + CODEC.compress(PLANE)[4:])


@pytest.mark.parametrize("held", [0, 1, len(PLANE) - 1, len(PLANE) + 1, 1 << 17])
def test_a_block_that_holds_less_or_more_than_the_chunk_declares_is_corrupt(held: int) -> None:
    block = lz4.block.compress(bytes(held), store_size=False)
    with pytest.raises(CorruptData):
        decompress(struct.pack("<I", len(PLANE)) + block)


@pytest.mark.parametrize("chunk", [b"", b"\x01", struct.pack("<I", len(PLANE))])
def test_a_chunk_without_a_block_is_corrupt(chunk: bytes) -> None:
    with pytest.raises(CorruptData, match="lz4hc e-chunk of"):
        decompress(chunk)


def test_a_block_that_refers_to_what_is_not_there_is_corrupt() -> None:
    # One literal, then a match from two exponents before it.
    with pytest.raises(CorruptData, match="does not decode"):
        decompress(struct.pack("<I", 8) + bytes([0x13, ord("a"), 2, 0]), 8)


def test_chunks_do_not_depend_on_the_level_of_the_codec_that_reads_them() -> None:
    assert decompress(create_codec("lz4hc", {"level": 12}).compress(PLANE)) == PLANE


def test_the_codec_reproduces_itself_from_its_parameters() -> None:
    assert CODEC.parameters == {"level": 9}
    assert create_codec("lz4hc", CODEC.parameters).compress(PLANE) == CODEC.compress(PLANE)


@pytest.mark.parametrize(
    ("name", "value"), [("level", 2), ("level", 13), ("level", "9"), ("level", 9.0), ("level", True), ("mode", 9)]
)
def test_a_parameter_that_this_version_does_not_know_is_refused(name: str, value: int | str) -> None:
    with pytest.raises(UnsupportedStore, match=f"codec lz4hc does not know parameter {name}="):
        create_codec("lz4hc", {name: value})
