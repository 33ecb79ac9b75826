"""Every backend that this CPU has, against the readable twin and against its own bounds."""

from __future__ import annotations

import ctypes
import mmap
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kernels.exponents import PLANES, plane
from zipmoe.codec import huffman_twin as twin
from zipmoe.errors import CorruptData, InvalidRequest
from zipmoe.kernels import backends as kernel_backends
from zipmoe.kernels import planes as plane_kernels
from zipmoe.kernels.huffman import compress_huffman, decompress_huffman, recover_huffman

CANARY = 0xA5
COUNTS = (0, 1, 2, 5, 6, 7, 100, 511, 4000)
BLOCK = 1 << 16

every_backend = pytest.mark.parametrize("backend", kernel_backends.backends())
every_kind = pytest.mark.parametrize("kind", PLANES)


def decompress(backend: str, chunk: bytes | memoryview, count: int) -> bytes:
    """Decompresses between canaries."""
    memory = bytearray([CANARY]) * (count + 256)
    try:
        decompress_huffman(chunk, memoryview(memory)[128 : 128 + count], using=backend)
    finally:
        assert memory[:128] == memory[128 + count :] == bytes([CANARY]) * 128
    return bytes(memory[128 : 128 + count])


def recover(backend: str, chunk: bytes | memoryview, sm: bytes | memoryview) -> bytes:
    """Recovers between canaries."""
    memory = bytearray([CANARY]) * (2 * len(sm) + 256)
    try:
        recover_huffman(chunk, sm, memoryview(memory)[128 : 128 + 2 * len(sm)], using=backend)
    finally:
        assert memory[:128] == memory[128 + 2 * len(sm) :] == bytes([CANARY]) * 128
    return bytes(memory[128 : 128 + 2 * len(sm)])


def merged(sm: bytes, e: bytes) -> bytes:
    out = bytearray(2 * len(sm))
    plane_kernels.merge_planes(sm, e, out, using="scalar")
    return bytes(out)


def rows_apart(count: int, cols: int) -> bytes:
    """Rows that differ in scale, and wrap around."""
    return bytes((e + 37 * (i // cols)) % 256 for i, e in enumerate(plane("like_weights", count)))


def skewed(count: int) -> bytes:
    """Each exponent half as frequent as the one before: the shortest code would have codewords beyond the limit."""
    draw = random.Random(count)
    return bytes(21 - draw.getrandbits(20).bit_length() for _ in range(count))


def uneven(count: int) -> bytes:
    """Six streams, one of them of one-bit codewords, the others of long ones."""
    return bytes([5]) * (count // 6) + random.Random(count).randbytes(count - count // 6).replace(b"\x05", b"\x06")


def assert_is_the_twins_and_comes_back(e: bytes, cols: int | None = None) -> bytes:
    chunk = compress_huffman(e, cols=cols)
    assert chunk == twin.compress(e, cols)
    assert twin.decompress(chunk, len(e)) == e
    sm = random.Random(len(e)).randbytes(len(e))
    for backend in kernel_backends.backends():
        assert decompress(backend, chunk, len(e)) == e
        assert recover(backend, chunk, sm) == merged(sm, e)
    return chunk


@every_kind
@pytest.mark.parametrize("count", COUNTS)
def test_chunks_are_the_twins_and_come_back_byte_for_byte(kind: str, count: int) -> None:
    assert_is_the_twins_and_comes_back(plane(kind, count))


@pytest.mark.parametrize("count", [BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 5000])
def test_planes_of_more_than_one_block_come_back(count: int) -> None:
    assert_is_the_twins_and_comes_back(plane("like_weights", count))


@pytest.mark.parametrize(("count", "cols"), [(3000, 300), (2900, 300), (2561, 256), (BLOCK + 5000, 5000)])
def test_rows_with_bases_come_back(count: int, cols: int) -> None:
    e = rows_apart(count, cols)
    chunk = assert_is_the_twins_and_comes_back(e, cols)
    assert int.from_bytes(chunk[8:12], "little") == cols
    assert len(chunk) < len(compress_huffman(e))


def test_short_rows_get_no_bases() -> None:
    e = rows_apart(3000, 255)
    assert assert_is_the_twins_and_comes_back(e, 255) == compress_huffman(e)


def test_rows_of_one_exponent_each_come_back() -> None:
    assert_is_the_twins_and_comes_back(b"".join(bytes([37 * row % 256]) * 300 for row in range(20)), 300)


def test_codewords_of_every_length_come_back() -> None:
    chunk = assert_is_the_twins_and_comes_back(skewed(20_000))
    nibbles = {half for byte in chunk[18:29] for half in (byte & 15, byte >> 4)}
    assert {1, 11} <= nibbles


def test_streams_of_very_different_lengths_come_back() -> None:
    assert_is_the_twins_and_comes_back(uneven(6 * 4000))


def test_one_bit_codewords_come_back() -> None:
    e = bytes(random.Random(1).choices((9, 200), k=10_000))
    assert len(assert_is_the_twins_and_comes_back(e)) < 10_000 / 8 + 200


def test_planes_of_every_length_come_back() -> None:
    for count in range(300):
        e, sm = plane("pruned", count), bytes(count)
        chunk = compress_huffman(e)
        for backend in kernel_backends.backends():
            assert decompress(backend, chunk, count) == e, f"{count} exponents"
            assert recover(backend, chunk, sm) == merged(sm, e), f"{count} exponents"


@every_backend
def test_every_pair_of_exponent_and_sm_byte_is_merged_exactly(backend: str) -> None:
    # The commonest exponent makes it worth coding the others.
    e = b"".join(bytes([exponent]) * 256 for exponent in range(256)) + bytes([120]) * 60_000
    sm = bytes(range(256)) * 256 + bytes(60_000)
    chunk = compress_huffman(e)
    assert chunk[12] == twin.CODED
    assert recover(backend, chunk, sm) == merged(sm, e)


@pytest.fixture
def page_end() -> Iterator[memoryview]:
    """Memory that is followed by an inaccessible page."""
    nbytes = 32 * mmap.PAGESIZE
    pages = mmap.mmap(-1, nbytes + mmap.PAGESIZE)
    view = memoryview(pages)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + nbytes
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert mprotect(address, mmap.PAGESIZE, 0) == 0
    yield view[:nbytes]
    assert mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


@every_backend
@every_kind
def test_no_byte_behind_a_buffer_is_touched(backend: str, kind: str, page_end: memoryview) -> None:
    for count in (*COUNTS[1:], 20_000):
        e, sm = plane(kind, count), random.Random(count).randbytes(count)
        page_end[-count:] = e
        chunk = compress_huffman(page_end[-count:])
        page_end[-len(chunk) :] = chunk
        assert recover(backend, page_end[-len(chunk) :], sm) == merged(sm, e)
        page_end[-count:] = sm
        assert recover(backend, chunk, page_end[-count:]) == merged(sm, e)
        decompress_huffman(chunk, page_end[-count:], using=backend)
        assert page_end[-count:] == e
        recover_huffman(chunk, sm, page_end[-2 * count :], using=backend)
        assert page_end[-2 * count :] == merged(sm, e)


@every_backend
@pytest.mark.parametrize(("kind", "count"), [("like_weights", 300), ("few_scattered", 4000), ("pruned", 20_000)])
def test_no_damage_makes_a_decoder_leave_its_buffers(backend: str, kind: str, count: int, page_end: memoryview) -> None:
    chunk, sm = compress_huffman(plane(kind, count)), bytes(count)
    rng = random.Random(count)
    refused = 0
    for _ in range(200):
        damaged = page_end[-len(chunk) :]
        damaged[:] = chunk
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(4, len(chunk))] = rng.randrange(256)
        try:
            recover(backend, damaged, sm)
        except CorruptData:
            refused += 1
    assert refused > 50


@every_backend
def test_many_threads_share_the_kernels(backend: str) -> None:
    planes = [plane(kind, 30_000) for kind in PLANES]
    chunks = [compress_huffman(e) for e in planes]

    def work_often(index: int) -> bool:
        return all(
            decompress(backend, chunks[index], 30_000) == planes[index]
            and compress_huffman(planes[index]) == chunks[index]
            for _ in range(5)
        )

    with ThreadPoolExecutor(4, thread_name_prefix="huffman") as pool:
        assert all(pool.map(work_often, range(len(planes))))


@pytest.mark.parametrize("cols", [0, -1])
def test_rows_without_weights_are_refused(cols: int) -> None:
    with pytest.raises(InvalidRequest, match=f"a row has at least 1 weight, not {cols}"):
        compress_huffman(b"abc", cols=cols)


def test_buffers_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    chunk = compress_huffman(bytes(8))
    out = bytearray([CANARY]) * 15
    with pytest.raises(InvalidRequest, match="out has 15 bytes, expected two for each of the 8 sm bytes"):
        recover_huffman(chunk, bytes(8), out)
    memory = memoryview(bytearray([CANARY]) * 256)
    for overlapping in (
        lambda: recover_huffman(chunk, memory[:8], memory[7:23]),
        lambda: recover_huffman(memory[:64], bytes(8), memory[63:79]),
        lambda: decompress_huffman(memory[:64], memory[63:71]),
    ):
        with pytest.raises(InvalidRequest, match="out overlaps"):
            overlapping()
    with pytest.raises(InvalidRequest, match="out is not a writable contiguous buffer"):
        decompress_huffman(chunk, bytes(8))
    with pytest.raises(InvalidRequest, match="using names kernel backend 'sse9'"):
        decompress_huffman(chunk, bytearray(8), using="sse9")
    assert out == bytes([CANARY]) * 15
    assert memory == bytes([CANARY]) * 256


@every_backend
def test_a_chunk_of_another_size_is_corrupt(backend: str) -> None:
    chunk = compress_huffman(bytes(100))
    for wrong in (0, 99, 101, 164):
        with pytest.raises(CorruptData, match=f"huffman e-chunk of {len(chunk)} bytes does not hold exactly {wrong}"):
            decompress(backend, chunk, wrong)
