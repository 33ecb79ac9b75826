"""Products from in-memory forms against the linear on bf16 and against the twins."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.kernels import linear_twin
from tests.kernels.forms.cases import KINDS, FormCase, every_form, every_order, plain, same
from zipmoe.errors import InvalidRequest
from zipmoe.kernels.linear import CascadePart, LinearShape, Order, lanes, pairs

SHAPES = [(32, 512), (64, 1408), (33, 7), (1, 1), (45, 1023), (8, 2048), (33, 1027), (5, 4500), (7, 192)]
ROWS = (*range(1, 18), 31)


@every_order
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_sums_that_cancel_have_the_bits_of_the_order(case: FormCase, order: Order, n: int, k: int) -> None:
    x, weight = linear_twin.cancelling(max(ROWS), n, k)
    bias = linear_twin.round_to_bf16(np.linspace(-1e-6, 1e-6, n, dtype=np.float32))
    matrix = case.made(weight)
    for added in (None, bias):
        wanted = plain(x, weight, order, added)
        for m in ROWS:
            found = case.compute(x[:m], matrix, n, order, added, threads=1 + m % 2)
            assert (found == wanted[:m]).all(), f"{m} rows"


@every_order
def test_the_twin_has_the_same_sums(case: FormCase, order: Order) -> None:
    x, weight = linear_twin.cancelling(5, 40, 1100)
    matrix = case.made(weight)
    wanted = linear_twin.linear(x, case.twin.decode(matrix, 40, 1100), order)
    assert (case.compute(x, matrix, 40, order) == wanted).all()


@every_form
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_every_kind_give_the_bits_of_bf16(case: FormCase, kind: str) -> None:
    rng = np.random.default_rng(9)
    weight = KINDS[kind](rng, 70, 1408)
    x = linear_twin.round_to_bf16(rng.standard_normal((20, 1408)).astype(np.float32))
    matrix = case.made(weight)
    for order in case.orders[::2]:
        wanted = plain(x, weight, order)
        for m in (1, 2, 3, 4, 5, 8, 16, 20):
            assert same(case.compute(x[:m], matrix, 70, order), wanted[:m])


@every_form
def test_special_numbers_come_out_as_from_bf16(case: FormCase) -> None:
    x, weight = linear_twin.special(17, 40, 1150)
    for order in case.orders[::2]:
        wanted = plain(x, weight, order)
        for m in (1, 3, 17):
            assert same(case.compute(x[:m], case.made(weight), 40, order), wanted[:m])
        assert 0 < np.isnan(linear_twin.widen(wanted)).sum() < wanted.size


@every_form
def test_the_number_of_threads_and_of_other_rows_never_shows(case: FormCase) -> None:
    x, weight = linear_twin.cancelling(40, 700, 640)
    matrix = case.made(weight)
    alone = np.concatenate([case.compute(x[row : row + 1], matrix, 700, case.order) for row in range(40)])
    for threads in (0, 1, 2, 3, 8):
        for m in (2, 7, 9, 16, 40):
            assert (case.compute(x[:m], matrix, 700, case.order, threads=threads) == alone[:m]).all()


@every_form
def test_more_rows_than_are_packed_at_once_are_computed(case: FormCase) -> None:
    x, weight = linear_twin.cancelling(530, 33, 64)
    assert (case.compute(x, case.made(weight), 33, case.order) == plain(x, weight, case.order)).all()


@every_form
def test_many_threads_at_once_get_their_own_results(case: FormCase) -> None:
    problems = [linear_twin.cancelling(m, 200, 256) for m in (1, 3, 8, 16)]
    matrices = [case.made(weight) for _, weight in problems]
    wanted = [plain(*each, case.order) for each in problems]

    def compute_often(index: int) -> bool:
        x, stored = problems[index % 4][0], matrices[index % 4]
        found = (case.compute(x, stored, 200, case.order, threads=2) for _ in range(20))
        return all((each == wanted[index % 4]).all() for each in found)

    with ThreadPoolExecutor(4, thread_name_prefix="form") as pool:
        assert all(pool.map(compute_often, range(8)))


@every_form
def test_nothing_is_nothing_to_do(case: FormCase) -> None:
    for m, n, k in ((0, 4, 8), (4, 0, 8), (3, 5, 0)):
        matrix = case.made(np.zeros((n, k), np.uint16))
        assert case.recovered(matrix, n, k).shape == (n, k)
        bias = np.arange(n, dtype=np.uint16) + 0x3F80
        x = np.zeros((m, k), np.uint16)
        assert (case.compute(x, matrix, n, case.order, bias) == bias).all()


@every_form
def test_what_does_not_fit_is_refused_before_anything_is_written(case: FormCase) -> None:
    form, order = case.form, case.order
    matrix = case.made(np.zeros((4, 8), np.uint16))
    out, room = bytearray(b"\xa5" * 16), bytearray(form.bound(4, 8))
    shape = LinearShape(2, 4, 8)
    with pytest.raises(InvalidRequest, match="x has 30 bytes, expected 16 bf16 numbers"):
        form.linear(bytes(30), matrix, out, shape, order)
    with pytest.raises(InvalidRequest, match="bias has 9 bytes"):
        form.linear(bytes(32), matrix, out, shape, order, bias=bytes(9))
    other = lanes() if order == pairs(1024) else pairs(1024)
    with pytest.raises(InvalidRequest, match=f"{form} has no products in the order {other}"):
        form.linear(bytes(32), matrix, out, shape, other)
    with pytest.raises(InvalidRequest, match="out overlaps an input"):
        form.linear(memoryview(out), matrix, out, LinearShape(1, 8, 8), order)
    with pytest.raises(InvalidRequest, match="weight has 62 bytes, expected 32"):
        form.from_bf16(bytes(62), room, 4, 8)
    with pytest.raises(InvalidRequest, match=r"parts have \[3\] rows, expected 4 together"):
        form.from_cascade([CascadePart(3, b"", bytes(24))], room, 4, 8)
    with pytest.raises(InvalidRequest, match="out has 14 bytes"):
        form.to_bf16(matrix, bytearray(14), 4, 8)
    assert out == b"\xa5" * 16 and not any(room)
