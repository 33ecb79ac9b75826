"""Every backend that this CPU has, against the readable twin and against its own bounds."""

from __future__ import annotations

import ctypes
import mmap
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kernels.exponents import PLANES, plane
from zipmoe.codec import cascade_twin as twin
from zipmoe.errors import CorruptData, InvalidRequest
from zipmoe.kernels import backends as kernel_backends
from zipmoe.kernels import planes as plane_kernels
from zipmoe.kernels.cascade import compress_cascade, decompress_cascade, recover_cascade

CANARY = 0xA5
SHAPES = [(0, 64, 1), (1, 1, 1), (63, 63, 8), (64, 64, 8), (65, 65, 2), (640, 64, 4), (1000, 100, 3), (4000, 1000, 2)]
LARGE = (20_000, 1408, 16)

every_backend = pytest.mark.parametrize("backend", kernel_backends.backends())
every_kind = pytest.mark.parametrize("kind", PLANES)


def decompress(backend: str, chunk: bytes, count: int) -> bytes:
    """Decompresses between canaries."""
    memory = bytearray([CANARY]) * (count + 256)
    try:
        decompress_cascade(chunk, memoryview(memory)[128 : 128 + count], using=backend)
    finally:
        assert memory[:128] == memory[128 + count :] == bytes([CANARY]) * 128
    return bytes(memory[128 : 128 + count])


def recover(backend: str, chunk: bytes, sm: bytes) -> bytes:
    """Recovers between canaries."""
    memory = bytearray([CANARY]) * (2 * len(sm) + 256)
    try:
        recover_cascade(chunk, sm, memoryview(memory)[128 : 128 + 2 * len(sm)], using=backend)
    finally:
        assert memory[:128] == memory[128 + 2 * len(sm) :] == bytes([CANARY]) * 128
    return bytes(memory[128 : 128 + 2 * len(sm)])


def merged(sm: bytes, e: bytes) -> bytes:
    out = bytearray(2 * len(sm))
    plane_kernels.merge_planes(sm, e, out, using="scalar")
    return bytes(out)


@every_kind
@pytest.mark.parametrize(("count", "cols", "block_rows"), [*SHAPES, LARGE])
def test_chunks_are_the_twins(kind: str, count: int, cols: int, block_rows: int) -> None:
    e = plane(kind, count)
    chunk = compress_cascade(e, cols=cols, block_rows=block_rows)
    assert chunk == twin.compress(e, cols, block_rows)
    assert twin.decompress(chunk, count) == e


@every_backend
@every_kind
@pytest.mark.parametrize(("count", "cols", "block_rows"), [*SHAPES, LARGE])
def test_every_plane_comes_back_byte_for_byte(backend: str, kind: str, count: int, cols: int, block_rows: int) -> None:
    e, sm = plane(kind, count), random.Random(count).randbytes(count)
    chunk = compress_cascade(e, cols=cols, block_rows=block_rows)
    assert decompress(backend, chunk, count) == e
    assert recover(backend, chunk, sm) == merged(sm, e)


@every_backend
def test_every_pair_of_exponent_and_sm_byte_is_merged_exactly(backend: str) -> None:
    e = b"".join(bytes([exponent]) * 256 for exponent in range(256))
    chunk = compress_cascade(e, cols=256, block_rows=16)
    sm = bytes(range(256)) * 256
    assert recover(backend, chunk, sm) == merged(sm, e)


@every_backend
def test_rows_of_every_length_come_back(backend: str) -> None:
    for cols in range(1, 200):
        count = 3 * cols - cols // 3
        e, sm = plane("pruned", count), random.Random(cols).randbytes(count)
        chunk = compress_cascade(e, cols=cols, block_rows=2)
        assert decompress(backend, chunk, count) == e, f"{cols} columns"
        assert recover(backend, chunk, sm) == merged(sm, e), f"{cols} columns"


@every_backend
def test_levels_of_every_length_come_back(backend: str) -> None:
    """From no escape to two groups of them at each of the deeper levels: whole groups, partial ones, none."""
    for escapes in range(130):
        for exponent in (4, 7, 10, 13):
            e = bytes([0, 1, 2] * 60 + [exponent] * escapes)
            e = bytes(random.Random(escapes).sample(e, len(e))) + bytes([3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
            chunk = compress_cascade(e, cols=len(e), block_rows=1)
            assert decompress(backend, chunk, len(e)) == e, f"{escapes} times {exponent}"


@every_backend
@pytest.mark.parametrize(("cols", "block_rows"), [(65_536, 1), (64, 1024), (2048, 1_000_000)])
def test_the_largest_blocks_come_back(backend: str, cols: int, block_rows: int) -> None:
    for kind in ("like_weights", "deep", "uniform"):
        e = plane(kind, 70_000)
        chunk = compress_cascade(e, cols=cols, block_rows=block_rows)
        assert decompress(backend, chunk, len(e)) == e
        sm = bytes(len(e))
        assert recover(backend, chunk, sm) == merged(sm, e)


@every_backend
@pytest.mark.parametrize("kind", ["like_weights", "deep", "uniform"])
@pytest.mark.parametrize(("cols", "block_rows"), [(2048, 16), (96, 100), (100, 100)])
def test_outputs_large_enough_to_bypass_the_caches_come_back(
    backend: str, kind: str, cols: int, block_rows: int
) -> None:
    e = plane(kind, 140_000)
    sm = random.Random(cols).randbytes(len(e))
    chunk, expected = compress_cascade(e, cols=cols, block_rows=block_rows), merged(sm, e)
    pages = memoryview(mmap.mmap(-1, 2 * len(e) + 256))
    for begin in (64, 65, 96):  # what is written past the caches has to be aligned
        pages[:] = bytes([CANARY]) * len(pages)
        recover_cascade(chunk, sm, pages[begin : begin + 2 * len(e)], using=backend)
        assert pages[begin : begin + 2 * len(e)] == expected
        assert pages[:begin] == bytes([CANARY]) * begin
        assert set(pages[begin + 2 * len(e) :]) == {CANARY}


@pytest.fixture
def page_end() -> Iterator[memoryview]:
    """Memory that is followed by an inaccessible page."""
    nbytes = 8 * mmap.PAGESIZE
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
    for count, cols, block_rows in [*SHAPES[1:], (1, 64, 1), (130, 64, 8)]:
        e, sm = plane(kind, count), random.Random(count).randbytes(count)
        page_end[-count:] = e
        chunk = compress_cascade(page_end[-count:], cols=cols, block_rows=block_rows)
        page_end[-len(chunk) :] = chunk
        assert recover(backend, page_end[-len(chunk) :], sm) == merged(sm, e)
        page_end[-count:] = sm
        assert recover(backend, chunk, page_end[-count:]) == merged(sm, e)
        decompress_cascade(chunk, page_end[-count:], using=backend)
        assert page_end[-count:] == e
        recover_cascade(chunk, sm, page_end[-2 * count :], using=backend)
        assert page_end[-2 * count :] == merged(sm, e)


@every_backend
def test_many_threads_share_the_kernels(backend: str) -> None:
    planes = [plane(kind, 30_000) for kind in PLANES]
    chunks = [compress_cascade(e, cols=1000, block_rows=4) for e in planes]

    def work_often(index: int) -> bool:
        return all(
            decompress(backend, chunks[index], 30_000) == planes[index]
            and compress_cascade(planes[index], cols=1000, block_rows=4) == chunks[index]
            for _ in range(5)
        )

    with ThreadPoolExecutor(4, thread_name_prefix="cascade") as pool:
        assert all(pool.map(work_often, range(len(planes))))


@pytest.mark.parametrize(("cols", "block_rows"), [(0, 1), (1, 0), (-1, 1), (65_537, 1)])
def test_numbers_out_of_range_are_refused(cols: int, block_rows: int) -> None:
    with pytest.raises(InvalidRequest, match=f"in rows of {cols} and blocks of {block_rows} rows"):
        compress_cascade(b"abc", cols=cols, block_rows=block_rows)


def test_buffers_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    chunk = compress_cascade(bytes(8), cols=8, block_rows=1)
    out = bytearray([CANARY]) * 15
    with pytest.raises(InvalidRequest, match="out has 15 bytes, expected two for each of the 8 sm bytes"):
        recover_cascade(chunk, bytes(8), out)
    memory = memoryview(bytearray([CANARY]) * 256)
    for overlapping in (
        lambda: recover_cascade(chunk, memory[:8], memory[7:23]),
        lambda: recover_cascade(memory[:64], bytes(8), memory[63:79]),
        lambda: decompress_cascade(memory[:64], memory[63:71]),
    ):
        with pytest.raises(InvalidRequest, match="out overlaps"):
            overlapping()
    with pytest.raises(InvalidRequest, match="out is not a writable contiguous buffer"):
        decompress_cascade(chunk, bytes(8))
    with pytest.raises(InvalidRequest, match="using names kernel backend 'sse9'"):
        decompress_cascade(chunk, bytearray(8), using="sse9")
    assert out == bytes([CANARY]) * 15
    assert memory == bytes([CANARY]) * 256


@every_backend
def test_a_chunk_of_another_size_is_corrupt(backend: str) -> None:
    chunk = compress_cascade(bytes(100), cols=64, block_rows=1)
    for wrong in (0, 99, 101, 164):
        with pytest.raises(CorruptData, match=f"cascade e-chunk of {len(chunk)} bytes does not hold exactly {wrong}"):
            decompress(backend, chunk, wrong)
