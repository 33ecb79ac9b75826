"""huffman: chunks that no writer of ours makes, and what it promises about sizes."""

from __future__ import annotations

import heapq
import math
import random
import struct
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.exponents import PLANES, plane
from zipmoe.codec import huffman_twin as twin
from zipmoe.codec.registry import create_codec
from zipmoe.errors import CorruptData, UnsupportedStore
from zipmoe.kernels import backends as kernel_backends
from zipmoe.kernels import planes as plane_kernels
from zipmoe.kernels.huffman import compress_huffman, decompress_huffman, recover_huffman

COLS = 256

# A chunk of each kind as the first version wrote it, and the plane it holds; must stay readable for ever.
FIRST_CHUNKS = {
    "stored": (
        "uniform",
        24,
        ("5a4d48311800000000000000000000006a47ef535de23fb9ea1856d3052ef0cb22ff41e492238ad7"),
    ),
    "constant": (
        "constant",
        1000,
        ("5a4d4831e80300000000000001000000ea"),
    ),
    "coded": (
        "like_weights",
        200,
        (
            "5a4d4831c800000000000000020000007079076755235109000a0009000a0009000800d393c6852b859edb17"
            "45c8c1edb3cae174a700883ab30be3272665002bb273ea1f0139cbdf06c6c5b48627b99a8500419f1c9e8cb0"
            "ad0b0000000000000000"
        ),
    ),
    "coded from bases": (
        "row_scaled",
        600,
        (
            "5a4d48315802000000010000020000007681088067452441f81d421b001e001d001d001c001d00f3d9a07448"
            "96b358ea44e408b7b125fe0afb893adcfec87eda41009767a7cdeb7661996bb37641a6344261d886df2edf69"
            "a3ddddaa4669a300a1607b77ff32f635ed1c4fb05961b0ef98bad38dc74493de02f6fc14319fa11ea1a7d437"
            "c9f4192aa2d236728b6f59345e6f9796f7f1bb721b224c065067953cecb06b14479b7d36e1175a963dabec69"
            "476f5b686a0f357cea92d6f32d9c75cb28b083d9dc2c3b5b8185d3d3f394c0cff8ca010000000000000000"
        ),
    ),
}


def row_scaled(count: int) -> bytes:
    return bytes((e + 37 * (i // COLS)) % 256 for i, e in enumerate(plane("like_weights", count)))


def outcome(chunk: bytes, count: int, backend: str) -> bytes | None:
    """The exponents, or None where the chunk is corrupt; recovering has to agree."""
    e, sm, bf16 = bytearray(count), bytes(count), bytearray(2 * count)
    try:
        decompress_huffman(chunk, e, using=backend)
    except CorruptData:
        with pytest.raises(CorruptData):
            recover_huffman(chunk, sm, bf16, using=backend)
        return None
    recover_huffman(chunk, sm, bf16, using=backend)
    merged = bytearray(2 * count)
    plane_kernels.merge_planes(sm, e, merged, using="scalar")
    assert bf16 == merged
    return bytes(e)


def outcome_of_the_twin(chunk: bytes, count: int) -> bytes | None:
    try:
        return twin.decompress(chunk, count)
    except CorruptData:
        return None


def agreed(chunk: bytes, count: int) -> bytes | None:
    """What all backends and the twin make of a chunk."""
    expected = outcome_of_the_twin(chunk, count)
    for backend in kernel_backends.backends():
        assert outcome(chunk, count, backend) == expected
    return expected


def chunk_of(
    count: int,
    *,
    lengths: bytes = bytes([10, 11, 0x11]),
    bases: bytes = b"",
    cols: int = 0,
    streams: Sequence[bytes],
    sizes: Sequence[int] | None = None,
    tail: bytes = bytes(8),
) -> bytes:
    """A coded chunk of one block; by default its symbols are 10, codeword 0, and 11, codeword 1."""
    header = b"ZMH1" + struct.pack("<III", count, cols, twin.CODED)
    stored_sizes = struct.pack("<6H", *(sizes or map(len, streams)))
    return header + lengths + bases + stored_sizes + b"".join(streams) + tail


def test_a_hand_made_chunk_is_read() -> None:
    # Eight exponents, two a stream, the later one first; the last two streams have none.
    streams = [b"\x01", b"\x02", b"\x00", b"\x03", b"", b""]
    assert agreed(chunk_of(8, streams=streams), 8) == bytes([10, 11, 11, 10, 10, 10, 11, 11])


def test_bases_are_added_modulo_256_row_by_row() -> None:
    chunk = chunk_of(8, cols=3, bases=bytes([0, 100, 246]), streams=[b"\x01", b"\x02", b"\x00", b"\x03", b"", b""])
    assert agreed(chunk, 8) == bytes([10, 11, 11, 110, 110, 110, 1, 1])


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("a stream that is too short", {"streams": [b"", b"\x02", b"\x00", b"\x03", b"", b""]}),
        ("a stream that is too long", {"streams": [b"\x01\x00", b"\x02", b"\x00", b"\x03", b"", b""]}),
        ("a stream of nothing with bytes", {"streams": [b"\x01", b"\x02", b"\x00", b"\x03", b"\x00", b""]}),
        ("a bit behind a stream", {"streams": [b"\x05", b"\x02", b"\x00", b"\x03", b"", b""]}),
        ("sizes of more than the chunk", {"sizes": [1, 1, 1, 2, 0, 0]}),
        ("sizes of less than the chunk", {"sizes": [1, 1, 1, 0, 0, 0]}),
        ("sizes that are shifted", {"sizes": [2, 0, 1, 1, 0, 0]}),
        ("the largest sizes", {"sizes": [0xFFFF] * 6}),
        ("a tail that is not zero", {"tail": bytes(7) + b"\x01"}),
        ("a tail that is too short", {"tail": bytes(7)}),
        ("a tail that is too long", {"tail": bytes(9)}),
        ("a code of one codeword", {"lengths": bytes([10, 11, 0x01])}),
        ("a code that leaves patterns without a meaning", {"lengths": bytes([10, 11, 0x21])}),
        ("a code with two meanings", {"lengths": bytes([10, 12, 0x11, 0x01])}),
        ("no codeword", {"lengths": bytes([10, 11, 0])}),
        ("a length beyond the longest", {"lengths": bytes([10, 12, 0xC1, 0x01])}),
        ("a length behind the last symbol", {"lengths": bytes([10, 12, 0x11, 0x10])}),
        ("a range of one symbol", {"lengths": bytes([10, 10, 0x01])}),
        ("a range that ends before it begins", {"lengths": bytes([11, 10, 0x11])}),
        ("bases without rows", {"bases": bytes(1)}),
        ("rows without bases", {"cols": 8}),
        ("a base for each weight, and no more", {"cols": 1, "bases": bytes(7)}),
    ],
)
def test_a_chunk_with_anything_wrong_is_corrupt(what: str, change: dict[str, bytes]) -> None:
    streams = [b"\x01", b"\x02", b"\x00", b"\x03", b"", b""]
    assert agreed(chunk_of(8, **{"streams": streams, **change}), 8) is None, what


@pytest.mark.parametrize(
    "chunk",
    [
        b"",
        b"ZMH1",
        b"ZMH2" + struct.pack("<III", 3, 0, 0) + b"abc",
        b"ZMH1" + struct.pack("<III", 4, 0, 0) + b"abc",
        b"ZMH1" + struct.pack("<III", 3, 0, 0) + b"ab",
        b"ZMH1" + struct.pack("<III", 3, 0, 0) + b"abcd",
        b"ZMH1" + struct.pack("<III", 3, 3, 0) + b"abc",
        b"ZMH1" + struct.pack("<III", 3, 0, 1),
        b"ZMH1" + struct.pack("<III", 3, 0, 1) + b"ab",
        b"ZMH1" + struct.pack("<III", 3, 3, 1) + b"a",
        b"ZMH1" + struct.pack("<III", 3, 0, 3) + b"abc",
        b"ZMH1" + struct.pack("<III", 3, 0, 256) + b"abc",
        b"ZMH1" + struct.pack("<III", 3, 0, 2),
        b"ZMH1" + struct.pack("<III", 3, 0, 2) + bytes([10, 11]),
    ],
)
def test_a_header_with_anything_wrong_is_corrupt(chunk: bytes) -> None:
    assert agreed(chunk, 3) is None


def test_nothing_is_stored_and_never_constant_or_coded() -> None:
    assert agreed(compress_huffman(b""), 0) == b""
    assert agreed(b"ZMH1" + struct.pack("<III", 0, 0, 1) + b"a", 0) is None
    assert agreed(chunk_of(0, streams=[b""] * 6), 0) is None


@pytest.mark.parametrize("name", FIRST_CHUNKS)
def test_a_chunk_of_the_first_version_is_still_read(name: str) -> None:
    kind, count, chunk = FIRST_CHUNKS[name]
    expected = row_scaled(count) if kind == "row_scaled" else plane(kind, count)
    assert agreed(bytes.fromhex(chunk), count) == expected


@given(kind=st.sampled_from(sorted(PLANES)), count=st.integers(1, 700), data=st.data())
def test_the_twin_and_all_backends_agree_on_any_damaged_chunk(kind: str, count: int, data: st.DataObject) -> None:
    e = row_scaled(count) if kind == "row_scaled" else plane(kind, count)
    chunk = bytearray(compress_huffman(e, cols=COLS))
    for _ in range(data.draw(st.integers(1, 3))):
        chunk[data.draw(st.integers(4, len(chunk) - 1))] ^= data.draw(st.integers(1, 255))
    agreed(bytes(chunk), count)


@given(counts=st.dictionaries(st.integers(0, 255), st.integers(1, 1 << 20), min_size=2))
def test_codes_are_complete_and_within_the_limit(counts: dict[int, int]) -> None:
    lengths = twin.shortest_lengths(counts)
    assert lengths.keys() == counts.keys()
    assert max(lengths.values()) <= twin.LONGEST
    assert sum(2.0**-length for length in lengths.values()) == 1


@given(counts=st.dictionaries(st.integers(0, 255), st.integers(100, 500), min_size=2, max_size=200))
def test_a_code_is_as_short_as_huffmans_where_that_is_within_the_limit(counts: dict[int, int]) -> None:
    heap = list(counts.values())
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        bits += pair
        heapq.heappush(heap, pair)
    lengths = twin.shortest_lengths(counts)
    assert sum(count * lengths[symbol] for symbol, count in counts.items()) == bits


def test_normally_distributed_weights_come_close_to_their_entropy() -> None:
    generator = random.Random(1)
    weights = struct.pack("<200000f", *(generator.gauss(0, 0.02) for _ in range(200_000)))
    e = bytes((high << 1 | low >> 7) & 0xFF for low, high in zip(weights[2::4], weights[3::4], strict=True))
    entropy = -sum(n / len(e) * math.log2(n / len(e)) for n in Counter(e).values())
    stored = (8 + 8 * len(compress_huffman(e, cols=2000)) / len(e)) / 16
    assert stored <= (8 + entropy) / 16 + 0.005


@pytest.mark.parametrize("count", [1, 2, 100, 100_000])
def test_no_plane_grows_by_more_than_the_header(count: int) -> None:
    assert len(compress_huffman(plane("uniform", count))) <= count + twin.HEADER_BYTES


def test_a_constant_plane_is_seventeen_bytes() -> None:
    assert len(compress_huffman(bytes(1_000_000))) == 17


def test_parameters_are_refused() -> None:
    with pytest.raises(UnsupportedStore, match="codec huffman has no parameters, got level"):
        create_codec("huffman", {"level": 1})
