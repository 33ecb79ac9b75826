"""What every codec promises: exact recovery, exact sizes, the same bytes again, and no harm from a hostile chunk."""

from __future__ import annotations

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.exponents import PLANES, plane
from zipmoe.codec.base import Codec
from zipmoe.codec.registry import codec_names, create_codec
from zipmoe.errors import CorruptData, InvalidRequest
from zipmoe.kernels.planes import merge_planes, split_planes
from zipmoe.store.format.checksum import xxh3

CANARY = 0xA5

every_codec = pytest.mark.parametrize("codec", [create_codec(name) for name in codec_names()], ids=codec_names())

# Exponents of weights: mostly a handful of values, sometimes anything.
exponent_planes = st.one_of(
    st.binary(max_size=600),
    st.lists(st.sampled_from([117, 118, 119, 120, 121]), max_size=600).map(bytes),
    st.tuples(st.integers(0, 255), st.integers(0, 200_000)).map(lambda run: bytes([run[0]]) * run[1]),
)


def weights_plane(count: int, seed: int = 0) -> bytes:
    """Exponents distributed as those of normally distributed weights, nearly."""
    ladder = random.Random(seed).choices(range(121, 111, -1), weights=[2.0**-i for i in range(10)], k=count)
    return bytes(ladder)


def decompress(codec: Codec, chunk: bytes, count: int) -> bytes:
    """Decompresses into the middle of a larger buffer whose rest has to stay as it was."""
    memory = bytearray([CANARY]) * (count + 128)
    try:
        codec.decompress(chunk, memoryview(memory)[64 : 64 + count])
    finally:
        assert memory[:64] == memory[64 + count :] == bytes([CANARY]) * 64
    return bytes(memory[64 : 64 + count])


@every_codec
@given(plane=exponent_planes)
def test_any_plane_comes_back_byte_for_byte(codec: Codec, plane: bytes) -> None:
    assert decompress(codec, codec.compress(plane), len(plane)) == plane


@every_codec
@given(plane=exponent_planes, seed=st.integers(0, 2**32))
def test_recovering_gives_the_weights_bit_for_bit(codec: Codec, plane: bytes, seed: int) -> None:
    sm = random.Random(seed).randbytes(len(plane))
    expected, out = bytearray(2 * len(plane)), bytearray(2 * len(plane))
    merge_planes(sm, plane, expected)
    codec.recover(codec.compress(plane), memoryview(sm).toreadonly(), memoryview(out))
    assert out == expected


@every_codec
@given(plane=exponent_planes, wrong=st.integers(-5, 5).filter(bool))
def test_a_chunk_of_another_size_than_expected_is_corrupt(codec: Codec, plane: bytes, wrong: int) -> None:
    chunk = codec.compress(plane)
    with pytest.raises(CorruptData):
        decompress(codec, chunk, max(0, len(plane) + wrong) if plane else abs(wrong))


@every_codec
@given(plane=exponent_planes, data=st.data())
def test_a_truncated_chunk_is_corrupt(codec: Codec, plane: bytes, data: st.DataObject) -> None:
    chunk = codec.compress(plane)
    if chunk:
        keep = data.draw(st.integers(0, len(chunk) - 1))
        with pytest.raises(CorruptData):
            decompress(codec, chunk[:keep], len(plane))


@every_codec
@given(plane=exponent_planes, garbage=st.binary(min_size=1, max_size=40))
def test_bytes_behind_a_chunk_are_corrupt(codec: Codec, plane: bytes, garbage: bytes) -> None:
    with pytest.raises(CorruptData):
        decompress(codec, codec.compress(plane) + garbage, len(plane))


@every_codec
@given(data=st.data())
def test_a_damaged_chunk_is_corrupt_or_gives_as_many_exponents_and_harms_nothing(
    codec: Codec, data: st.DataObject
) -> None:
    # A codec need not notice every flipped bit (the store's checksums do), but it must stay within its output.
    plane = weights_plane(data.draw(st.integers(1, 3000)))
    chunk = bytearray(codec.compress(plane))
    for _ in range(data.draw(st.integers(1, 4))):
        chunk[data.draw(st.integers(0, len(chunk) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptData):
        decompress(codec, bytes(chunk), len(plane))
    # The same thread's next chunk is unaffected.
    assert decompress(codec, codec.compress(plane), len(plane)) == plane


@every_codec
@pytest.mark.parametrize("kind", PLANES)
def test_every_byte_of_a_chunk_may_be_damaged(codec: Codec, kind: str) -> None:
    """Whatever is wrong is refused, or gives weights that the checksum of the tensor tells from the right ones."""
    e, cols = plane(kind, 700), 350
    sm = random.Random(kind).randbytes(len(e))
    expected, memory = bytearray(2 * len(e)), bytearray([CANARY]) * (2 * len(e) + 128)
    merge_planes(sm, e, expected)
    out = memoryview(memory)[64:-64]
    chunk = codec.compress(e, cols)
    for place in range(len(chunk)):
        damaged = bytearray(chunk)
        damaged[place] ^= 1 << place % 8
        try:
            codec.recover(bytes(damaged), sm, out)
        except CorruptData:
            continue
        finally:
            assert memory[:64] == memory[-64:] == bytes([CANARY]) * 64
        assert out == expected or xxh3(out) != xxh3(expected)


@every_codec
@pytest.mark.parametrize("shuffled", [False, True])
def test_every_bf16_pattern_comes_back(codec: Codec, shuffled: bool) -> None:
    patterns = list(range(1 << 16))
    if shuffled:
        random.Random(1).shuffle(patterns)
    bf16 = b"".join(pattern.to_bytes(2, "little") for pattern in patterns)
    sm, e, out = bytearray(1 << 16), bytearray(1 << 16), bytearray(2 << 16)
    split_planes(bf16, sm, e)
    codec.recover(codec.compress(e, 1 << 8), sm, memoryview(out))
    assert out == bf16


@every_codec
@given(chunk=st.binary(max_size=300), count=st.integers(0, 2000))
def test_arbitrary_bytes_are_corrupt_or_give_as_many_exponents(codec: Codec, chunk: bytes, count: int) -> None:
    with contextlib.suppress(CorruptData):
        decompress(codec, chunk, count)


@every_codec
def test_a_codec_gives_the_same_bytes_in_every_thread_and_after_other_planes(codec: Codec) -> None:
    plane = weights_plane(300_000)
    expected = create_codec(codec.name).compress(plane)

    def compress_again(seed: int) -> bytes:
        codec.compress(weights_plane(1000 * seed, seed))
        return codec.compress(plane)

    with ThreadPoolExecutor(4, thread_name_prefix="compress") as pool:
        assert set(pool.map(compress_again, range(8))) == {expected}


@every_codec
def test_many_threads_share_one_codec(codec: Codec) -> None:
    planes = [weights_plane(50_000 + 1000 * seed, seed) for seed in range(8)]
    chunks = [codec.compress(plane) for plane in planes]

    def recover_often(index: int) -> bool:
        plane = planes[index]
        sm, out, expected = bytes(len(plane)), bytearray(2 * len(plane)), bytearray(2 * len(plane))
        merge_planes(sm, plane, expected)
        for _ in range(20):
            codec.recover(chunks[index], sm, memoryview(out))
        return out == expected

    with ThreadPoolExecutor(4, thread_name_prefix="recover") as pool:
        assert all(pool.map(recover_often, range(8)))


@every_codec
def test_recovering_into_an_output_of_the_wrong_size_is_refused(codec: Codec) -> None:
    chunk = codec.compress(bytes(8))
    out = bytearray([CANARY]) * 15
    with pytest.raises(InvalidRequest, match="out has 15 bytes, expected two for each of the 8 sm bytes"):
        codec.recover(chunk, bytes(8), memoryview(out))
    assert out == bytes([CANARY]) * 15


@every_codec
def test_recovering_a_chunk_of_another_size_is_corrupt(codec: Codec) -> None:
    chunk = codec.compress(bytes(9))
    with pytest.raises(CorruptData):
        codec.recover(chunk, bytes(8), memoryview(bytearray(16)))


@every_codec
def test_planes_and_outputs_may_be_any_contiguous_buffer(codec: Codec) -> None:
    plane = weights_plane(64)
    out = memoryview(bytearray(64)).cast("B", (8, 8))
    codec.decompress(memoryview(codec.compress(memoryview(plane).cast("B", (8, 8)))), out)
    assert out.tobytes() == plane
