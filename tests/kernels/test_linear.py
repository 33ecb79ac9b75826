"""Every backend in both orders, against the numpy twin, between threads, and against its own bounds."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.kernels import linear_twin as twin
from zipmoe.errors import CorruptData, InvalidRequest
from zipmoe.kernels import backends as kernel_backends
from zipmoe.kernels.cascade import compress_cascade
from zipmoe.kernels.linear import CascadePart, LinearShape, Order, is_native, lanes, linear_bf16, linear_cascade, pairs

ORDERS = (lanes(), pairs(64), pairs(512), pairs(64, 2), pairs(96, 3))
SHAPES = [(5, 64), (33, 192), (70, 130), (6, 17), (48, 31), (1, 256), (7, 1100), (35, 1)]
ROWS = (1, 2, 3, 4, 8, 9, 13, 17, 50)
PARTED = [(64, 4, 1100), (32, 5, 330), (96, 2, 500), (64, 7, 150), (512, 2, 300)]
"""Blocks of inputs, parts and inputs: last blocks and parts that are shorter, fewer blocks than parts, one block."""

CANARY = 0xA5A5

every_backend = pytest.mark.parametrize("backend", kernel_backends.backends())
every_order = pytest.mark.parametrize("order", ORDERS, ids=str)


def compute(
    backend: str,
    order: Order,
    x: twin.Bf16,
    weight: twin.Bf16,
    bias: twin.Bf16 | None = None,
    *,
    threads: int = 1,
    parts: list[CascadePart] | None = None,
) -> twin.Bf16:
    """Computes between canaries."""
    shape = LinearShape(len(x), len(weight), x.shape[1])
    memory = np.full(shape.m * shape.n + 64, CANARY, np.uint16)
    out = memory[32:-32]
    if parts is None:
        linear_bf16(x, weight, out, shape, order, bias=bias, threads=threads, using=backend)
    else:
        linear_cascade(x, parts, out, shape, order, bias=bias, threads=threads, using=backend)
    assert (memory[:32] == CANARY).all() and (memory[-32:] == CANARY).all()
    return out.reshape(shape.m, shape.n)


def compressed(weight: twin.Bf16, counts: list[int], *, block_rows: int, cols: int | None = None) -> list[CascadePart]:
    """A matrix in parts of some rows each."""
    parts, first = [], 0
    for count in counts:
        rows = weight[first : first + count]
        e, sm = (rows >> 7 & 0xFF).astype(np.uint8), (rows >> 8 & 0x80 | rows & 0x7F).astype(np.uint8)
        chunk = compress_cascade(e, cols=cols or weight.shape[1], block_rows=block_rows)
        parts.append(CascadePart(count, chunk, sm.tobytes()))
        first += count
    return parts


@every_backend
@every_order
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_sums_that_cancel_have_the_bits_of_the_order(backend: str, order: Order, n: int, k: int) -> None:
    x, weight = twin.cancelling(max(ROWS), n, k)
    bias = twin.round_to_bf16(np.linspace(-1e-6, 1e-6, n, dtype=np.float32))
    for added in (None, bias):
        wanted = twin.linear(x, weight, order, added)
        for m in ROWS:
            assert (compute(backend, order, x[:m], weight, added) == wanted[:m]).all(), f"{m} rows"


def test_the_orders_differ_where_sums_cancel() -> None:
    x, weight = twin.cancelling(4, 64, 1100)
    results = [twin.linear(x, weight, order).tobytes() for order in ORDERS]
    assert len(set(results)) == len(ORDERS)


@every_backend
@every_order
def test_special_numbers_come_out_as_in_the_scalar_code(backend: str, order: Order) -> None:
    x, weight = twin.special(17, 40, 150)
    wanted = compute("scalar", order, x, weight)
    found = compute(backend, order, x, weight)
    numbers = ~np.isnan(twin.widen(wanted))
    assert (np.isnan(twin.widen(found)) == ~numbers).all()
    assert (found[numbers] == wanted[numbers]).all()
    assert 0 < numbers.sum() < numbers.size


@every_backend
@every_order
def test_the_number_of_threads_never_shows(backend: str, order: Order) -> None:
    x, weight = twin.cancelling(9, 700, 256)
    alone = compute(backend, order, x, weight)
    for threads in (0, 2, 3, 8):
        assert (compute(backend, order, x, weight, threads=threads) == alone).all()


@every_order
def test_a_row_has_the_same_bits_alone_and_among_others(order: Order) -> None:
    x, weight = twin.cancelling(600, 40, 320)
    together = compute(kernel_backends.backend(), order, x, weight)
    for row in (0, 1, 299, 599):
        assert (compute(kernel_backends.backend(), order, x[row : row + 1], weight)[0] == together[row]).all()


@every_backend
@every_order
@pytest.mark.parametrize(("counts", "k", "block_rows"), [([24, 16, 5], 192, 8), ([64, 40], 256, 16), ([9], 1100, 4)])
@pytest.mark.parametrize("m", [1, 3, 16, 60])
def test_compressed_weights_give_the_same_bits(
    backend: str, order: Order, counts: list[int], k: int, block_rows: int, m: int
) -> None:
    x, weight = twin.cancelling(m, sum(counts), k)
    bias = twin.round_to_bf16(np.linspace(-1e-6, 1e-6, sum(counts), dtype=np.float32))
    parts = compressed(weight, counts, block_rows=block_rows)
    wanted = compute(backend, order, x, weight, bias)
    for threads in (1, 2):
        assert (compute(backend, order, x, weight, bias, threads=threads, parts=parts) == wanted).all()


@every_backend
@every_order
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_parts_of_several_forms_give_the_bits_of_one_matrix(backend: str, order: Order, threads: int) -> None:
    """Parts of the matrix's width and others, blocks of several heights, empty parts, and more than run together."""
    counts = [8, 3, 0, 16, 1, 5] * 8
    x, weight = twin.cancelling(2, sum(counts), 256)
    parts, first = [], 0
    for index, count in enumerate(counts):
        cols = 256 * count if index % 6 == 1 else None
        rows = weight[first : first + count]
        parts += compressed(rows, [count], block_rows=1 if cols else (4, 8)[index % 2], cols=cols)
        first += count
    assert len(parts) > 32
    wanted = compute(backend, order, x, weight)
    assert (compute(backend, order, x, weight, threads=threads, parts=parts) == wanted).all()


@every_backend
@pytest.mark.parametrize(("k_block", "parts", "k"), PARTED)
@pytest.mark.parametrize("m", [1, 3, 20])
def test_compressed_weights_are_summed_in_parts_as_the_twin_does(
    backend: str, k_block: int, parts: int, k: int, m: int
) -> None:
    order = pairs(k_block, parts)
    x, weight = twin.cancelling(m, 45, k)
    wanted = twin.linear(x, weight, order)
    assert (compute(backend, order, x, weight) == wanted).all()
    chunks = compressed(weight, [32, 13], block_rows=16)
    for threads in (1, 2):
        assert (compute(backend, order, x, weight, threads=threads, parts=chunks) == wanted).all()


def test_orders_that_are_called_the_same_give_the_same_sums() -> None:
    orders = (lanes(), *(pairs(k_block, parts) for k_block in (64, 128, 512) for parts in (1, 2, 3, 4)))
    for k in (64, 100, 300, 512):
        x, weight = twin.cancelling(3, 24, k)
        results = {order: twin.linear(x, weight, order).tobytes() for order in orders}
        for first, second in itertools.product(orders, repeat=2):
            assert not first.same_sums(second, k) or results[first] == results[second], f"{first} and {second}, {k}"
    assert pairs(512, 2).same_sums(pairs(128, 2), 128), "one block holds all inputs, of either size"
    assert not pairs(128, 2).same_sums(pairs(128), 512)
    assert not pairs(128, 2).same_sums(pairs(128, 3), 2048)


@every_backend
@every_order
@pytest.mark.parametrize("m", [1, 3, 8, 20])
def test_every_kind_of_block_and_exceptions_give_the_same_bits(backend: str, order: Order, m: int) -> None:
    weight = twin.of_every_kind(192)
    x = twin.cancelling(m, 1, 192)[0]
    (part,) = compressed(weight, [len(weight)], block_rows=16)
    entries = np.frombuffer(part.e_chunk, np.uint8)[16:].view()[: 16 * (len(weight) // 16)].reshape(-1, 16)
    assert set(entries[:, 14]) == {0, 1, 2}, "raw blocks, tables of blocks and tables of rows"
    assert (entries[:, 12] > 0).any(), "exceptions"
    wanted = compute("scalar", order, x, weight)
    for threads in (1, 2):
        assert (compute(backend, order, x, weight, threads=threads, parts=[part]) == wanted).all()


@every_backend
@every_order
def test_compressed_weights_in_longer_rows_than_the_matrix_give_the_same_bits(backend: str, order: Order) -> None:
    x, weight = twin.cancelling(4, 100, 48)
    parts = compressed(weight, [56, 44], block_rows=8, cols=2048)
    assert (compute(backend, order, x, weight, parts=parts) == compute(backend, order, x, weight)).all()


@every_backend
@every_order
@pytest.mark.parametrize(("m", "block_rows"), [(3, 8), (1, 16), (20, 16)])
def test_any_mutation_of_a_chunk_is_an_error_or_another_number(
    backend: str, order: Order, m: int, block_rows: int
) -> None:
    rng = random.Random(5)
    x, weight = twin.cancelling(m, 32, 128)
    (part,) = compressed(weight, [32], block_rows=block_rows)
    chunk = bytes(part.e_chunk)
    for _ in range(300):
        mutated = bytearray(chunk)
        for _ in range(rng.randint(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        del mutated[rng.choice((len(mutated), len(mutated), rng.randrange(len(mutated)))) :]
        try:
            compute(backend, order, x, weight, parts=[CascadePart(32, mutated, part.sm)], threads=rng.choice((1, 2)))
        except CorruptData as error:
            assert "32 " not in error.message or "4096" in error.message


@pytest.fixture
def page_end() -> Iterator[memoryview]:
    """Some pages of memory that are followed by an inaccessible one."""
    size = 16 * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + size
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert mprotect(address, mmap.PAGESIZE, 0) == 0
    yield memoryview(pages)[:size]
    assert mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


@every_backend
@every_order
def test_no_byte_behind_an_input_or_an_output_is_touched(backend: str, order: Order, page_end: memoryview) -> None:
    for m, n, k in ((1, 5, 64), (2, 17, 130), (5, 3, 31), (20, 33, 191)):
        x, weight = twin.cancelling(m, n, k)
        bias = twin.round_to_bf16(np.ones(n, np.float32))
        wanted = twin.linear(x, weight, order, bias)
        for index in range(4):
            buffers = [memoryview(bytearray(each.tobytes())) for each in (x, weight, bias, np.zeros_like(wanted))]
            at_end = page_end[len(page_end) - buffers[index].nbytes :]
            at_end[:] = buffers[index]
            buffers[index] = at_end
            linear_bf16(*buffers[:2], buffers[3], LinearShape(m, n, k), order, bias=buffers[2], using=backend)
            assert buffers[3] == wanted.tobytes()


def test_no_rows_and_no_outputs_are_nothing_to_do() -> None:
    for m, n, k in ((0, 4, 8), (4, 0, 8)):
        linear_bf16(bytes(2 * m * k), bytes(2 * n * k), bytearray(2 * m * n), LinearShape(m, n, k), lanes())
        linear_cascade(bytes(2 * m * k), [], bytearray(), LinearShape(m, 0, k), lanes())


@every_backend
@every_order
def test_without_inputs_an_output_is_its_bias(backend: str, order: Order) -> None:
    x, weight = np.zeros((3, 0), np.uint16), np.zeros((5, 0), np.uint16)
    bias = np.arange(5, dtype=np.uint16) + 0x3F80
    assert (compute(backend, order, x, weight, bias) == bias).all()
    assert (compute(backend, order, x, weight) == 0).all()


def test_many_threads_at_once_get_their_own_results() -> None:
    problems = [twin.cancelling(m, 400, 256) for m in (1, 3, 16, 60)]
    wanted = [compute(kernel_backends.backend(), lanes(), *each) for each in problems]

    def compute_often(index: int) -> bool:
        results = [compute(kernel_backends.backend(), lanes(), *problems[index % 4], threads=2) for _ in range(20)]
        return all((result == wanted[index % 4]).all() for result in results)

    with ThreadPoolExecutor(4, thread_name_prefix="linear") as pool:
        assert all(pool.map(compute_often, range(8)))


def test_sizes_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    shape, out = LinearShape(2, 4, 8), bytearray(b"\xa5" * 16)
    for x, weight, bias, match in (
        (bytes(30), bytes(64), None, "x has 30 bytes, expected 16 bf16 numbers"),
        (bytes(32), bytes(62), None, "weight has 62 bytes, expected 32"),
        (bytes(32), bytes(64), bytes(9), "bias has 9 bytes, expected 4"),
    ):
        with pytest.raises(InvalidRequest, match=match):
            linear_bf16(x, weight, out, shape, lanes(), bias=bias)
    with pytest.raises(InvalidRequest, match="out has 14 bytes"):
        linear_bf16(bytes(32), bytes(64), bytearray(14), shape, lanes())
    with pytest.raises(InvalidRequest, match="out is not a writable"):
        linear_bf16(bytes(32), bytes(64), bytes(16), shape, lanes())
    with pytest.raises(InvalidRequest, match=r"parts have \[3\] rows, expected 4 together"):
        linear_cascade(bytes(32), [CascadePart(3, b"", bytes(24))], out, shape, lanes())
    with pytest.raises(InvalidRequest, match="sm has 31 bytes, expected 4 rows of 8"):
        linear_cascade(bytes(32), [CascadePart(4, b"", bytes(31))], out, shape, lanes())
    assert out == b"\xa5" * 16


def test_an_output_that_overlaps_an_input_is_refused() -> None:
    memory = memoryview(bytearray(200))
    with pytest.raises(InvalidRequest, match="out overlaps an input"):
        linear_bf16(memory[:32], bytes(64), memory[30:46], LinearShape(2, 4, 8), lanes())
    with pytest.raises(InvalidRequest, match="out overlaps an input"):
        linear_bf16(bytes(32), memory[:64], memory[60:76], LinearShape(2, 4, 8), lanes())


@pytest.mark.parametrize("k_block", [0, -32, 31, 48])
def test_a_block_that_is_not_whole_steps_is_refused(k_block: int) -> None:
    with pytest.raises(InvalidRequest, match=f"k_block is {k_block}"):
        pairs(k_block)


@pytest.mark.parametrize("parts", [0, -1])
def test_fewer_than_one_part_is_refused(parts: int) -> None:
    with pytest.raises(InvalidRequest, match=f"parts is {parts}, but has to be at least 1"):
        pairs(512, parts)


def test_the_scalar_backend_is_never_called_native() -> None:
    assert not is_native(lanes(), using="scalar")
    assert not is_native(pairs(512), using="scalar")
    assert is_native(lanes()) == (kernel_backends.backend() != "scalar")
