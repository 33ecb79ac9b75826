"""Tile form against its twin and against the linear on bf16: every bit kept, every hostile byte refused."""

from __future__ import annotations

import ctypes
import mmap
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.kernels import linear_twin, tile_twin
from tests.kernels.linear_twin import Bf16
from tests.kernels.test_linear import compressed
from zipmoe.errors import CorruptData, InvalidRequest, ResourceExhausted
from zipmoe.kernels.linear import CascadePart, LinearShape, Order, lanes, linear_bf16, pairs
from zipmoe.kernels.tile import (
    linear_tiles,
    supports_tiles,
    tile_bound,
    tiles_from_bf16,
    tiles_from_cascade,
    tiles_to_bf16,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "tile-v1"
ORDERS = (pairs(1024), pairs(512), pairs(512, 2), pairs(96, 3), pairs(64))
SHAPES = [(32, 512), (64, 1408), (100, 700), (33, 7), (1, 1), (45, 1023), (96, 768), (8, 2048), (33, 1027)]
ROWS = (*range(1, 18), 31)
CANARY = 0xA5

needs_tiles = pytest.mark.skipif(not supports_tiles(), reason="tile form needs a CPU with AVX-512 VBMI2 and BF16")


def _gaussian(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return _scaled(rng, n, k, np.full((n, 1), 0.02))


def _row_scaled(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return _scaled(rng, n, k, np.exp(rng.uniform(-2, 2, (n, 1))))


def _student(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return linear_twin.round_to_bf16((rng.standard_t(3, (n, k)) * 0.02).astype(np.float32))


def _pruned(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return _scaled(rng, n, k, np.where(rng.random((n, k)) < 0.12, 0, 0.02))


def _pruned_row_scaled(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return _scaled(rng, n, k, np.exp(rng.uniform(-2, 2, (n, 1))) * (rng.random((n, k)) > 0.12))


def _cubed(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return linear_twin.round_to_bf16((rng.standard_normal((n, k)) ** 3).astype(np.float32))


def _huge(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return _scaled(rng, n, k, np.full((n, 1), 2.0**100))


def _random_bits(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return rng.integers(0, 1 << 16, (n, k)).astype(np.uint16)


def _scaled(rng: np.random.Generator, n: int, k: int, scale: np.ndarray) -> Bf16:
    return linear_twin.round_to_bf16((rng.standard_normal((n, k)) * scale).astype(np.float32))


KINDS: dict[str, Callable[[np.random.Generator, int, int], Bf16]] = {
    each.__name__[1:]: each
    for each in (_gaussian, _row_scaled, _student, _pruned, _pruned_row_scaled, _cubed, _huge, _random_bits)
}


def tiled(weight: Bf16) -> bytes:
    """A matrix in tile form, made between canaries."""
    n, k = weight.shape
    memory = np.full(tile_bound(n, k) + 128, CANARY, np.uint8)
    used = tiles_from_bf16(np.ascontiguousarray(weight), memory[64:-64], n, k)
    assert (memory[:64] == CANARY).all() and (memory[-64:] == CANARY).all()
    return memory[64 : 64 + used].tobytes()


def recovered(tiles: bytes, n: int, k: int) -> Bf16:
    memory = np.full(n * k + 64, 0xA5A5, np.uint16)
    tiles_to_bf16(tiles, memory[32:-32], n, k)
    assert (memory[:32] == 0xA5A5).all() and (memory[-32:] == 0xA5A5).all()
    return memory[32:-32].reshape(n, k)


def compute(x: Bf16, tiles: bytes, n: int, order: Order, bias: Bf16 | None = None, threads: int = 1) -> Bf16:
    shape = LinearShape(len(x), n, x.shape[1])
    memory = np.full(shape.m * shape.n + 64, 0xA5A5, np.uint16)
    linear_tiles(x, tiles, memory[32:-32], shape, order, bias=bias, threads=threads)
    assert (memory[:32] == 0xA5A5).all() and (memory[-32:] == 0xA5A5).all()
    return memory[32:-32].reshape(shape.m, shape.n)


def plain(x: Bf16, weight: Bf16, order: Order, bias: Bf16 | None = None) -> Bf16:
    shape = LinearShape(len(x), *weight.shape)
    out = np.empty((shape.m, shape.n), np.uint16)
    linear_bf16(x, np.ascontiguousarray(weight), out, shape, order, bias=bias)
    return out


def same(found: Bf16, wanted: Bf16) -> bool:
    """Whether the bits are the same; one NaN is like another."""
    both_nan = np.isnan(linear_twin.widen(found)) & np.isnan(linear_twin.widen(wanted))
    return bool(((found == wanted) | both_nan).all())


@needs_tiles
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_bytes_are_those_of_the_twin_and_give_every_bit_back(kind: str, n: int, k: int) -> None:
    weight = KINDS[kind](np.random.default_rng([n, k]), n, k)
    tiles = tiled(weight)
    assert tiles == tile_twin.encode(weight)
    assert (recovered(tiles, n, k) == weight).all()
    assert (tile_twin.decode(tiles, n, k) == weight).all()


@needs_tiles
@pytest.mark.parametrize("k", [64, 1024, 2047])
def test_all_patterns_of_bf16_come_back(k: int) -> None:
    patterns = np.random.default_rng(k).permutation(1 << 16).astype(np.uint16)
    for row in (patterns, np.sort(patterns)):
        weight = np.resize(row, (-(-len(row) // k), k))
        assert (recovered(tiled(weight), *weight.shape) == weight).all()


@needs_tiles
def test_chunks_of_a_store_become_the_same_bytes() -> None:
    for counts, k, block_rows, cols in (
        ([16, 48], 512, 16, None),
        ([7, 0, 30, 1, 62], 192, 16, None),
        ([20, 25], 100, 8, None),
        ([56, 44], 48, 8, 2048),
    ):
        weight = _row_scaled(np.random.default_rng(k), sum(counts), k)
        parts = compressed(weight, counts, block_rows=block_rows, cols=cols)
        out = bytearray(tile_bound(*weight.shape))
        used = tiles_from_cascade(parts, out, *weight.shape)
        assert out[:used] == tiled(weight)


@needs_tiles
def test_every_kind_of_cascade_block_is_converted() -> None:
    weight = linear_twin.of_every_kind(192)
    out = bytearray(tile_bound(*weight.shape))
    used = tiles_from_cascade(compressed(weight, [len(weight)], block_rows=16), out, *weight.shape)
    assert out[:used] == tiled(weight)


@needs_tiles
def test_a_corrupt_chunk_is_an_error() -> None:
    weight = _gaussian(np.random.default_rng(1), 64, 128)
    first, second = compressed(weight, [32, 32], block_rows=16)
    out = bytearray(tile_bound(64, 128))
    rng = random.Random(3)
    for _ in range(200):
        chunk = bytearray(second.e_chunk)
        chunk[rng.randrange(len(chunk))] ^= 1 << rng.randrange(8)
        try:
            used = tiles_from_cascade([first, CascadePart(32, chunk, second.sm)], out, 64, 128)
        except CorruptData:
            continue
        assert recovered(bytes(out[:used]), 64, 128).shape == (64, 128)
    truncated = CascadePart(32, bytes(second.e_chunk)[:-1], second.sm)
    with pytest.raises(CorruptData, match="do not hold exactly 64 rows of 128 exponents"):
        tiles_from_cascade([first, truncated], out, 64, 128)


@needs_tiles
def test_bytes_written_by_version_1_are_read_and_written_again() -> None:
    weight = np.frombuffer((GOLDEN / "weight.bf16").read_bytes(), np.uint16).reshape(33, 1026)
    tiles = (GOLDEN / "tiles").read_bytes()
    assert (recovered(tiles, 33, 1026) == weight).all()
    assert (tile_twin.decode(tiles, 33, 1026) == weight).all()
    assert tiled(weight) == tiles


@needs_tiles
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_sums_that_cancel_have_the_bits_of_the_order(order: Order, n: int, k: int) -> None:
    x, weight = linear_twin.cancelling(max(ROWS), n, k)
    bias = linear_twin.round_to_bf16(np.linspace(-1e-6, 1e-6, n, dtype=np.float32))
    tiles = tiled(weight)
    for added in (None, bias):
        wanted = plain(x, weight, order, added)
        for m in ROWS:
            found = compute(x[:m], tiles, n, order, added, threads=1 + m % 2)
            assert (found == wanted[:m]).all(), f"{m} rows"


@needs_tiles
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_the_twin_has_the_same_sums(order: Order) -> None:
    x, weight = linear_twin.cancelling(5, 40, 1100)
    tiles = tiled(weight)
    wanted = linear_twin.linear(x, tile_twin.decode(tiles, 40, 1100), order)
    assert (compute(x, tiles, 40, order) == wanted).all()


@needs_tiles
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_every_kind_give_the_bits_of_bf16(kind: str) -> None:
    rng = np.random.default_rng(9)
    weight = KINDS[kind](rng, 70, 1408)
    x = _scaled(rng, 20, 1408, np.ones((20, 1)))
    tiles = tiled(weight)
    for m in (1, 4, 5, 8, 16, 20):
        for order in (pairs(1024), pairs(512, 2)):
            assert same(compute(x[:m], tiles, 70, order), plain(x[:m], weight, order))


@needs_tiles
@pytest.mark.parametrize("order", [pairs(1024), pairs(512, 2)], ids=str)
def test_special_numbers_come_out_as_from_bf16(order: Order) -> None:
    x, weight = linear_twin.special(17, 40, 1150)
    wanted = plain(x, weight, order)
    found = compute(x, tiled(weight), 40, order)
    assert same(found, wanted)
    assert 0 < np.isnan(linear_twin.widen(wanted)).sum() < wanted.size


@needs_tiles
@pytest.mark.parametrize("kind", ["gaussian", "random_bits"])
@pytest.mark.parametrize("k", [1, 3, 1025])
def test_whatever_stands_behind_an_odd_last_input_is_not_multiplied(kind: str, k: int) -> None:
    weight = KINDS[kind](np.random.default_rng(k), 40, k + 1) & 0x3FFF
    weight[:, k] = np.where(np.arange(40) % 2, 0x7F80, 0x7FC1)  # times 0 it would be seen
    tiles = tiled(weight).replace((k + 1).to_bytes(4, "little"), k.to_bytes(4, "little"), 1)
    x = linear_twin.cancelling(16, 1, k)[0]
    wanted = plain(x, weight[:, :k], pairs(512))
    assert not np.isnan(linear_twin.widen(wanted)).any()
    for m in (1, 4, 5, 16):
        assert (compute(x[:m], tiles, 40, pairs(512)) == wanted[:m]).all()


@needs_tiles
def test_the_number_of_threads_and_of_other_rows_never_shows() -> None:
    x, weight = linear_twin.cancelling(40, 700, 640)
    tiles = tiled(weight)
    alone = np.concatenate([compute(x[row : row + 1], tiles, 700, pairs(512)) for row in range(40)])
    for threads in (0, 1, 2, 3, 8):
        for m in (2, 7, 9, 16, 40):
            assert (compute(x[:m], tiles, 700, pairs(512), threads=threads) == alone[:m]).all()


@needs_tiles
def test_more_rows_than_are_packed_at_once_are_computed() -> None:
    x, weight = linear_twin.cancelling(530, 33, 64)
    assert (compute(x, tiled(weight), 33, pairs(64)) == plain(x, weight, pairs(64))).all()


@needs_tiles
def test_many_threads_at_once_get_their_own_results() -> None:
    problems = [linear_twin.cancelling(m, 200, 256) for m in (1, 3, 8, 16)]
    tiles = [tiled(weight) for _, weight in problems]
    wanted = [plain(*each, pairs(512)) for each in problems]

    def compute_often(index: int) -> bool:
        x, stored = problems[index % 4][0], tiles[index % 4]
        return all((compute(x, stored, 200, pairs(512), threads=2) == wanted[index % 4]).all() for _ in range(20))

    with ThreadPoolExecutor(4, thread_name_prefix="tile") as pool:
        assert all(pool.map(compute_often, range(8)))


@needs_tiles
@pytest.mark.parametrize("kind", ["gaussian", "pruned_row_scaled", "random_bits"])
@pytest.mark.parametrize(("n", "k"), [(33, 70), (8, 1026)])
def test_a_mutation_is_refused_exactly_where_the_twin_refuses_it(kind: str, n: int, k: int) -> None:
    rng = random.Random(f"{kind} {n}")
    weight = KINDS[kind](np.random.default_rng(1), n, k)
    x = linear_twin.cancelling(3, n, k)[0]
    tiles = tiled(weight)
    refused = 0
    for turn in range(250):
        mutated = bytearray(tiles)
        # Most of what is believed stands in front of the SM bytes.
        for _ in range(rng.randint(1, 3)):
            reach = rng.choice((64, 192, 256, len(mutated)))
            mutated[rng.randrange(min(reach, len(mutated)))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        if turn % 5 == 0:
            del mutated[rng.randrange(len(mutated)) :]
        try:
            wanted = tile_twin.decode(bytes(mutated), n, k)
        except tile_twin.NotTiles:
            refused += 1
            with pytest.raises(CorruptData, match=f"not {n} rows of {k} weights"):
                recovered(bytes(mutated), n, k)
            for m in (1, 3):
                with pytest.raises(CorruptData, match=f"not {n} rows of {k} weights"):
                    compute(x[:m], bytes(mutated), n, pairs(512), threads=1 + turn % 2)
            continue
        assert (recovered(bytes(mutated), n, k) == wanted).all()
        assert same(compute(x, bytes(mutated), n, pairs(512)), plain(x, wanted, pairs(512)))
    assert 20 < refused < 250


@needs_tiles
def test_a_matrix_of_other_sizes_is_corrupt() -> None:
    tiles = tiled(_gaussian(np.random.default_rng(1), 40, 130))
    for n, k in ((39, 130), (40, 129), (40, 131), (72, 130)):
        with pytest.raises(CorruptData, match=f"not {n} rows of {k} weights"):
            tiles_to_bf16(tiles, bytearray(2 * n * k), n, k)
        with pytest.raises(CorruptData, match=f"not {n} rows of {k} weights"):
            linear_tiles(bytes(2 * k), tiles, bytearray(2 * n), LinearShape(1, n, k), pairs(512))
    assert recovered(tiles + bytes(100), 40, 130).shape == (40, 130), "bytes behind the matrix are another's"


@pytest.fixture
def page_end() -> Iterator[memoryview]:
    """Some pages of memory that are followed by an inaccessible one."""
    size = 64 * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + size
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert mprotect(address, mmap.PAGESIZE, 0) == 0
    yield memoryview(pages)[:size]
    assert mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


@needs_tiles
@pytest.mark.parametrize("kind", ["gaussian", "random_bits"])
def test_no_byte_behind_a_buffer_is_touched(kind: str, page_end: memoryview) -> None:
    for m, n, k in ((1, 5, 64), (2, 17, 130), (5, 3, 31), (20, 33, 1027)):
        weight = KINDS[kind](np.random.default_rng(k), n, k)
        x = linear_twin.cancelling(m, n, k)[0]
        bias = linear_twin.round_to_bf16(np.ones(n, np.float32))
        tiles = tiled(weight)
        wanted = plain(x, weight, pairs(512), bias)
        out = np.zeros((m, n), np.uint16)
        for index, buffer in enumerate((x, tiles, bias, out)):
            data = bytes(buffer)
            at_end = page_end[len(page_end) - len(data) :]
            at_end[:] = data
            buffers = [x, tiles, bias, out]
            buffers[index] = at_end  # type: ignore[call-overload]
            linear_tiles(buffers[0], buffers[1], buffers[3], LinearShape(m, n, k), pairs(512), bias=buffers[2])  # type: ignore[arg-type]
            assert same(np.frombuffer(buffers[3], np.uint16).reshape(m, n), wanted)
        (part,) = compressed(weight, [n], block_rows=8)
        room = page_end[len(page_end) - tile_bound(n, k) :]
        assert room[: tiles_from_bf16(weight, room, n, k)] == tiles
        assert room[: tiles_from_cascade([part], room, n, k)] == tiles
        for source in ("weight", "sm", "e_chunk"):
            data = weight.tobytes() if source == "weight" else bytes(getattr(part, source))
            at_end = page_end[len(page_end) - len(data) :]
            at_end[:] = data
            made = bytearray(tile_bound(n, k))
            if source == "weight":
                used = tiles_from_bf16(at_end, made, n, k)
            else:
                moved = CascadePart(
                    n, *(at_end if name == source else getattr(part, name) for name in ("e_chunk", "sm"))
                )
                used = tiles_from_cascade([moved], made, n, k)
            assert made[:used] == tiles
        rows = page_end[len(page_end) - weight.nbytes :]
        tiles_to_bf16(tiles, rows, n, k)
        assert rows == weight.tobytes()


def test_no_matrix_is_much_larger_than_in_bf16() -> None:
    for n, k in ((32, 512), (2816, 2048), (2048, 1408), (64, 768)):
        assert tile_bound(n, k) == tile_twin.bound(n, k)
        blocks = n // 32 * -(-k // 1024)
        assert tile_bound(n, k) <= 2 * n * k + 64 * (blocks + n // 32) + 64 + 4 * (n // 32 + 4)
    assert tile_bound(1, 1) == tile_twin.bound(1, 1)
    assert tile_bound(0, 5) == 64


@needs_tiles
def test_ratios_are_near_those_of_the_store() -> None:
    rng = np.random.default_rng(5)
    most = {"gaussian": 0.670, "row_scaled": 0.670, "student": 0.685, "pruned": 0.70, "cubed": 0.90}
    for kind, limit in most.items():
        weight = KINDS[kind](rng, 64, 2048)
        assert len(tiled(weight)) <= limit * weight.nbytes, kind
    weight = _random_bits(rng, 64, 2048)
    assert len(tiled(weight)) == tile_bound(64, 2048)


@needs_tiles
@pytest.mark.parametrize("kind", ["gaussian", "random_bits"])
def test_a_matrix_takes_the_bytes_that_it_needs_and_never_one_more(kind: str) -> None:
    weight = KINDS[kind](np.random.default_rng(2), 40, 1100)
    tiles = tiled(weight)
    memory = np.full(len(tiles) + 64, CANARY, np.uint8)
    (part,) = compressed(weight, [40], block_rows=8)
    for room in (*range(len(tiles)), len(tiles))[-1::-999]:
        for make in (
            lambda out: tiles_from_bf16(weight, out, 40, 1100),
            lambda out: tiles_from_cascade([part], out, 40, 1100),
        ):
            memory[:] = CANARY
            if room == len(tiles):
                assert make(memory[:room]) == room
                assert memory[:room].tobytes() == tiles
            else:
                with pytest.raises(ResourceExhausted, match="40 rows of 1100 weights needs more bytes"):
                    make(memory[:room])
            assert (memory[room:] == CANARY).all()


@needs_tiles
def test_nothing_is_nothing_to_do() -> None:
    for m, n, k in ((0, 4, 8), (4, 0, 8), (3, 5, 0)):
        tiles = tiled(np.zeros((n, k), np.uint16))
        assert recovered(tiles, n, k).shape == (n, k)
        bias = np.arange(n, dtype=np.uint16) + 0x3F80
        x = np.zeros((m, k), np.uint16)
        assert (compute(x, tiles, n, pairs(64), bias) == bias).all()


@needs_tiles
def test_what_does_not_fit_is_refused_before_anything_is_written() -> None:
    tiles = tiled(np.zeros((4, 8), np.uint16))
    out = bytearray(b"\xa5" * 16)
    shape = LinearShape(2, 4, 8)
    with pytest.raises(InvalidRequest, match="x has 30 bytes, expected 16 bf16 numbers"):
        linear_tiles(bytes(30), tiles, out, shape, pairs(64))
    with pytest.raises(InvalidRequest, match="bias has 9 bytes"):
        linear_tiles(bytes(32), tiles, out, shape, pairs(64), bias=bytes(9))
    with pytest.raises(InvalidRequest, match="no products in the order lanes"):
        linear_tiles(bytes(32), tiles, out, shape, lanes())
    with pytest.raises(InvalidRequest, match="out overlaps an input"):
        linear_tiles(memoryview(out), tiles, out, LinearShape(1, 8, 8), pairs(64))
    with pytest.raises(InvalidRequest, match="weight has 62 bytes, expected 32"):
        tiles_from_bf16(bytes(62), bytearray(tile_bound(4, 8)), 4, 8)
    with pytest.raises(InvalidRequest, match=r"parts have \[3\] rows, expected 4 together"):
        tiles_from_cascade([CascadePart(3, b"", bytes(24))], bytearray(tile_bound(4, 8)), 4, 8)
    with pytest.raises(InvalidRequest, match="out has 14 bytes"):
        tiles_to_bf16(tiles, bytearray(14), 4, 8)
    assert out == b"\xa5" * 16


@pytest.mark.parametrize(("n", "k"), [(-1, 4), (4, -1), (1 << 31, 1), (1 << 20, 1 << 20)])
def test_sizes_out_of_range_are_refused(n: int, k: int) -> None:
    for call in (lambda: tile_bound(n, k), lambda: tiles_from_bf16(b"", bytearray(), n, k)):
        with pytest.raises(InvalidRequest, match=f"no tile form for {n} rows of {k} weights"):
            call()


def test_a_backend_without_tile_form_says_so() -> None:
    assert not supports_tiles("scalar")
    out = bytearray(tile_bound(1, 2))
    for call in (
        lambda: tiles_from_bf16(bytes(4), out, 1, 2, using="scalar"),
        lambda: tiles_to_bf16(out, bytearray(4), 1, 2, using="scalar"),
        lambda: linear_tiles(bytes(4), out, bytearray(2), LinearShape(1, 1, 2), pairs(32), using="scalar"),
    ):
        with pytest.raises(InvalidRequest, match="backend scalar has no tile form on this machine"):
            call()
    assert not any(out)
