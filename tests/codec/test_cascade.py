"""cascade: chunks that no writer of ours makes, its parameters, and what it promises about sizes."""

from __future__ import annotations

import math
import random
import struct
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.exponents import PLANES, plane
from zipmoe.codec import cascade_twin as twin
from zipmoe.codec.cascade import chunk_cols
from zipmoe.codec.registry import create_codec
from zipmoe.errors import CorruptData, UnsupportedStore
from zipmoe.kernels import backends as kernel_backends
from zipmoe.kernels import planes as plane_kernels
from zipmoe.kernels.cascade import compress_cascade, decompress_cascade, recover_cascade

# A chunk of each kind of block as the first version wrote it, and the plane it holds; must stay readable for ever.
FIRST_CHUNKS = {
    "raw": (
        "uniform",
        40,
        (
            "5a4d43312800000040000000020000004800000000000000000000000000000010c0f26e7abd9353d5a5cd0b"
            "1fe0c930c540b4ac9ee943fd49fc7a4d6991e32ad6463d4aa691f244"
        ),
    ),
    "one table": (
        "few_scattered",
        160,
        (
            "5a4d4331a000000040000000040000007a00000053001300000000000000010001ff4dc80902140003040506"
            "07080a0b0000000000ccb15cf9546b5b3fae1e132888045a7f454988c02c8d36f37bff743ebf737f3577e570"
            "ee343ccfff589f8fbaae7cffe1f4eff3fbcf0f0f0c08080e070f0f0c070203070d0c"
        ),
    ),
    "windows": (
        "row_scaled",
        200,
        (
            "5a4d4331c80000004000000004000000710000001d00040000000000000002004e016b018801550000f40682"
            "1035020300174b2ad63895250ba26a9ca17adaa7a296823012a2ed1f9aa88a8e93e79e16018aa6faaa7aab88"
            "a19aeaea66ca69e6a803020202000202030000000000000000"
        ),
    ),
}


def outcome(chunk: bytes, count: int, backend: str) -> bytes | None:
    """The exponents, or None where the chunk is corrupt; recovering has to agree."""
    e, sm, bf16 = bytearray(count), bytes(count), bytearray(2 * count)
    try:
        decompress_cascade(chunk, e, using=backend)
    except CorruptData:
        with pytest.raises(CorruptData):
            recover_cascade(chunk, sm, bf16, using=backend)
        return None
    recover_cascade(chunk, sm, bf16, using=backend)
    expected = bytearray(2 * count)
    plane_kernels.merge_planes(sm, e, expected)
    assert bf16 == expected
    return bytes(e)


def outcome_of_twin(chunk: bytes, count: int) -> bytes | None:
    try:
        return twin.decompress(chunk, count)
    except CorruptData:
        return None


def assert_all_agree(chunk: bytes, count: int) -> bytes | None:
    expected = outcome_of_twin(chunk, count)
    for backend in kernel_backends.backends():
        assert outcome(chunk, count, backend) == expected, backend
    return expected


@pytest.mark.parametrize("kind", FIRST_CHUNKS)
def test_a_chunk_of_the_first_version_is_still_read(kind: str) -> None:
    name, count, chunk = FIRST_CHUNKS[kind]
    assert assert_all_agree(bytes.fromhex(chunk), count) == plane(name, count)


def small_chunk(kind: str, count: int, cols: int) -> bytes:
    return compress_cascade(plane(kind, count), cols=cols, block_rows=4)


@given(
    kind=st.sampled_from(sorted(PLANES)),
    count=st.integers(1, 1500),
    cols=st.sampled_from([64, 100, 128, 500]),
    data=st.data(),
)
def test_a_mutated_chunk_is_the_same_to_every_backend_and_to_the_twin(
    kind: str, count: int, cols: int, data: st.DataObject
) -> None:
    chunk = bytearray(small_chunk(kind, count, cols))
    # Headers and entries are few bytes of many, and where a reader can be led astray.
    places = st.one_of(st.integers(0, min(64, len(chunk)) - 1), st.integers(0, len(chunk) - 1))
    for _ in range(data.draw(st.integers(1, 3))):
        chunk[data.draw(places)] = data.draw(st.integers(0, 255))
    assert_all_agree(bytes(chunk), count)


@given(
    header=st.tuples(st.integers(0, 300), st.integers(0, 130), st.integers(0, 1100)),
    entries=st.lists(
        st.tuples(
            st.integers(0, 400),
            *(st.integers(0, 70) for _ in range(4)),
            st.integers(0, 5),
            st.integers(0, 3),
            st.integers(0, 1),
        ),
        max_size=4,
    ),
    payload=st.binary(max_size=300),
    count=st.integers(0, 300),
)
def test_made_up_headers_and_entries_are_the_same_to_every_backend_and_to_the_twin(
    header: tuple[int, int, int], entries: list[tuple[int, ...]], payload: bytes, count: int
) -> None:
    chunk = twin.HEADER.pack(twin.MAGIC, *header) + b"".join(twin.ENTRY.pack(*entry) for entry in entries) + payload
    assert_all_agree(chunk, count)


@pytest.mark.parametrize("kind", ["like_weights", "few_scattered", "uniform", "deep"])
def test_every_value_of_every_byte_of_header_and_entries_is_survived(kind: str) -> None:
    chunk = small_chunk(kind, 200, 100)
    for place in range(16 + 16):
        for value in range(0, 256, 5):
            assert_all_agree(chunk[:place] + bytes([value]) + chunk[place + 1 :], 200)


@pytest.mark.parametrize("kind", ["like_weights", "deep"])
def test_a_level_with_more_or_fewer_codes_than_escapes_is_corrupt(kind: str) -> None:
    count = 640
    chunk = bytearray(small_chunk(kind, count, 64))
    level_1 = len(chunk) - 1
    for value in (0x00, 0xFF):  # the last four codes become rank 0, or escapes
        if chunk[level_1] != value:
            assert assert_all_agree(bytes(chunk[:level_1]) + bytes([value]), count) is None


@pytest.mark.parametrize("level", [2, 3, 4, 5])
@pytest.mark.parametrize("codes", [0, 1, 63, 64, 65, 0xFFFF])
def test_a_false_number_of_codes_is_corrupt(level: int, codes: int) -> None:
    chunk = bytearray(small_chunk("deep", 640, 64))
    place = 16 + 4 + 2 * (level - 2)
    if struct.unpack_from("<H", chunk, place)[0] != codes:
        struct.pack_into("<H", chunk, place, codes)
        assert assert_all_agree(bytes(chunk), 640) is None


def exceptions_chunk(positions: list[int]) -> bytes:
    """Two rows of 70 weights, all of exponent 7, but for exceptions of exponents 200, 201, ..."""
    exceptions = [(position, 200 + index) for index, position in enumerate(positions)]
    table = bytes(range(7, 23))
    levels = [twin.pack_codes([0] * 256), b"", b"", b"", b""]
    payload = twin.Coding(twin.TABLE, table, levels, [256, 0, 0, 0, 0], exceptions).payload
    entry = twin.ENTRY.pack(32 + len(payload), 0, 0, 0, 0, len(exceptions), twin.TABLE, 0)
    return twin.HEADER.pack(twin.MAGIC, 140, 70, 2) + entry + payload


@pytest.mark.parametrize("positions", [[0], [69], [128], [0, 1, 69, 128, 197]])
def test_exceptions_replace_their_weight(positions: list[int]) -> None:
    expected = bytearray([7]) * 140
    for index, position in enumerate(positions):
        expected[position if position < 70 else position - 128 + 70] = 200 + index
    assert assert_all_agree(exceptions_chunk(positions), 140) == expected


@pytest.mark.parametrize("positions", [[70], [127], [198], [256], [65_535], [5, 5], [5, 4], [128, 5], [300, 5]])
def test_an_exception_in_the_padding_outside_the_block_or_out_of_order_is_corrupt(positions: list[int]) -> None:
    assert assert_all_agree(exceptions_chunk(positions), 140) is None


def test_rank_15_is_a_symbol_like_any_other() -> None:
    e = bytes(range(100, 116)) * 20
    chunk = compress_cascade(e, cols=320, block_rows=1)
    assert struct.unpack_from("<H", chunk, 28)[0] == 0  # no exceptions
    assert assert_all_agree(chunk, 320) == e


@pytest.mark.parametrize("kind", PLANES)
def test_no_plane_grows_by_more_than_header_and_entries(kind: str) -> None:
    for count in (0, 1, 100, 5000):
        chunk = create_codec("cascade").compress(plane(kind, count), 128)
        blocks = math.ceil(count / (128 * 16))
        assert len(chunk) <= 16 + 16 * blocks + count


def exponents_of_normal_weights(rows: int, cols: int, deviation_of: list[float]) -> bytes:
    rng = random.Random(7)
    return bytes(
        max(0, math.frexp(abs(rng.gauss(0, deviation_of[row])) or 1e-30)[1] + 126)
        for row in range(rows)
        for _ in range(cols)
    )


def ratio_and_limit(e: bytes, cols: int) -> tuple[float, float]:
    entropy = -sum(n / len(e) * math.log2(n / len(e)) for n in Counter(e).values())
    return 0.5 + len(create_codec("cascade").compress(e, cols)) / (2 * len(e)), (8 + entropy) / 16


def test_normal_weights_take_at_most_one_percent_more_than_their_entropy() -> None:
    ratio, limit = ratio_and_limit(exponents_of_normal_weights(48, 1408, [0.02] * 48), 1408)
    assert ratio <= limit + 0.012


def test_rows_of_different_scale_take_less_than_the_entropy_of_all() -> None:
    scales = [0.02 * 2.0 ** random.Random(row).gauss(0, 1.4) for row in range(48)]
    ratio, limit = ratio_and_limit(exponents_of_normal_weights(48, 1408, scales), 1408)
    assert ratio < limit


@pytest.mark.parametrize(
    ("name", "value"), [("rows", 8), ("block_rows", 0), ("block_rows", 1025), ("block_rows", "8"), ("block_rows", True)]
)
def test_a_parameter_that_this_version_does_not_know_is_refused(name: str, value: int | str) -> None:
    with pytest.raises(UnsupportedStore, match=f"codec cascade does not know parameter {name}="):
        create_codec("cascade", {name: value})


def test_blocks_have_as_many_rows_as_asked_for() -> None:
    e = plane("like_weights", 64 * 128)
    for block_rows in (1, 8, 64):
        codec = create_codec("cascade", {"block_rows": block_rows})
        chunk = codec.compress(e, 128)
        assert codec.parameters == {"block_rows": block_rows}
        assert twin.HEADER.unpack_from(chunk) == (twin.MAGIC, len(e), 128, block_rows)
        assert create_codec("cascade").compress(e, 128) == compress_cascade(e, cols=128, block_rows=16)


@pytest.mark.parametrize(
    ("cols", "expected"),
    [(None, 2048), (1408, 1408), (2048, 2048), (14_336, 14_336), (1000, 1000), (12, 2048), (100, 2048), (70_000, 2048)],
)
def test_rows_are_the_matrixs_unless_padding_them_would_cost_too_much(cols: int | None, expected: int) -> None:
    assert chunk_cols(cols) == expected
