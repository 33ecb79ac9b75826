"""Linears by the kernels against torch, bit for bit, in whatever order this machine's torch sums."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from tests.kernels import linear_twin
from tests.kernels.test_linear import compressed
from zipmoe.errors import CorruptData
from zipmoe.kernels import backends as kernel_backends
from zipmoe.kernels.linear import CascadePart, LinearShape, is_native, lanes, pairs
from zipmoe.model.linear.linear_module import NativeLinear, replace_linears
from zipmoe.model.linear.linear_order import ROW_COUNTS, OrderTable, cancelling, compute
from zipmoe.model.linear.native_linear import LinearReport, Linears, SharedRows
from zipmoe.model.linear.packed import PackedMatrix
from zipmoe.store.format.layout import TensorSpec

ROWS = (1, 2, 3, 4, 5, 16, 64, 512)
WEIGHTS = [(96, 256), (33, 1408), (130, 1100), (40, 127), (65, 90), (9, 2050), (24, 17)]
ONEDNN = "ONEDNN_MAX_CPU_ISA"


@pytest.fixture(params=[1] if ONEDNN in os.environ else [1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether the bits are the same; one NaN is like another."""
    equal = (found.view(torch.int16) == wanted.view(torch.int16)) | (found.isnan() & wanted.isnan())
    return found.shape == wanted.shape and bool(equal.all())


@pytest.mark.parametrize(("n", "k"), WEIGHTS)
def test_no_output_differs_from_torch_at_any_number_of_rows(n: int, k: int, threads: int) -> None:
    linears = Linears()
    for m in ROWS:
        x, weight = cancelling(LinearShape(m, n, k))
        usual = torch.randn_like(weight, dtype=torch.float32).mul_(0.02).bfloat16()
        bias = torch.randn(n).mul_(1e-5).bfloat16()
        for each, added in ((weight, None), (weight, bias), (usual, None)):
            assert same(linears(x, each, added), linear(x, each, added)), f"{m} rows"


def test_experts_of_true_size_do_not_differ_either(threads: int) -> None:
    linears = Linears()
    for n, k in ((2816, 2048), (2048, 1408)):
        x, weight = cancelling(LinearShape(6, n, k))
        for m in (1, 2, 6):
            assert same(linears(x[:m], weight), linear(x[:m], weight))


@pytest.mark.parametrize(("n", "k"), [(64, 150), (48, 2048)])
def test_special_numbers_come_out_as_in_torch(n: int, k: int, threads: int) -> None:
    linears = Linears()
    x, weight = (torch.from_numpy(each.view("int16")).view(torch.bfloat16) for each in linear_twin.special(17, n, k))
    for m in (1, 17):
        assert same(linears(x[:m], weight), linear(x[:m], weight))
    for row in range(17):
        assert same(linears(x[row], weight), linear(x[row], weight)), f"row of kind {row % 8}"


def test_this_machine_has_kernels_for_what_torch_does() -> None:
    report = Linears().self_test([(256, 512, False), (128, 2048, True)])
    if not report.matched:
        pytest.skip(f"torch {torch.__version__} sums in another order on this CPU: {report}")
    assert report.unmatched == ()


@pytest.mark.slow
@pytest.mark.skipif(ONEDNN in os.environ, reason="this is that process")
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_all_this_holds_where_onednn_has_no_bf16_or_only_emulates_it(isa: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "differ or special or alone"],
        env={**os.environ, ONEDNN: isa},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]


def test_every_layout_of_the_inputs_has_the_bits_of_torch() -> None:
    linears = Linears()
    x, weight = cancelling(LinearShape(24, 96, 1408))
    for rows in (
        x[0],
        x[:1],
        x.view(1, 24, 1408),
        x.view(1, 24, 1408)[:, -1:],
        x.view(4, 6, 1408),
        x.view(4, 6, 1408)[:, 2],
        x[:, None],
        x.t().contiguous().t(),
        x[:, :1000],
    ):
        some = weight[:, : rows.shape[-1]]
        assert same(linears(rows, some), linear(rows, some)), f"{rows.shape}, {rows.stride()}"


def test_what_the_kernels_do_not_compute_is_left_to_torch() -> None:
    linears = Linears()
    x, weight = cancelling(LinearShape(3, 16, 64))
    assert torch.equal(linears(x.float(), weight.float()), linear(x.float(), weight.float()))
    assert linears(x[:0], weight).shape == (0, 16)
    assert linears(x, weight[:0]).shape == (3, 0)
    with torch.inference_mode(False), torch.enable_grad():
        learned = nn.Parameter(weight.clone())
        linears(x.clone(), learned).sum().backward()
    assert learned.grad is not None


@pytest.mark.parametrize(("n", "k"), [(96, 1408), (12, 60)])
def test_rows_together_have_the_bits_that_they_have_alone(n: int, k: int, threads: int) -> None:
    linears = Linears()
    x, weight = cancelling(LinearShape(24, n, k))
    bias = torch.randn(n).bfloat16()
    for added in (None, bias):
        wanted = torch.cat([linear(row, weight, added) for row in x.split(1)])
        assert same(linears.alone(x, weight, added), wanted)
        assert same(linears.alone(x.view(2, 12, k), weight, added), wanted.view(2, 12, n))


def backwards(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A torch that sums in an order of its own."""
    return linear(x.flip(-1), weight.flip(-1), bias)


def test_a_torch_that_rounds_differently_is_stepped_back_to() -> None:
    table = OrderTable(stock=backwards)
    assert table.order(LinearShape(2, 64, 1100), bias=False) is None
    linears = Linears(table)
    x, weight = cancelling(LinearShape(5, 64, 1100))
    assert same(linears(x, weight), linear(x, weight))
    assert same(linears.alone(x, weight), torch.cat([linear(row, weight) for row in x.split(1)]))
    report = linears.self_test([(64, 1100, False)])
    assert report.matched == 0
    assert str(report).startswith("torch computes all linears: in none of 6 cases")


def test_a_table_without_candidates_knows_no_order() -> None:
    assert OrderTable(orders=[]).order(LinearShape(1, 64, 256), bias=False) is None


def test_torch_is_asked_once_for_a_shape_and_not_for_rows_between_two_that_agree() -> None:
    asked = []

    def stock(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if x.abs().max() > 0.1:  # an order that matches is tested again, with inputs that are tiny
            asked.append(len(x))
        return linear(x, weight, bias)

    table = OrderTable(stock, orders=[lanes()] if "avx2" in kernel_backends.backends() else [])
    for m in (1, 40, 40, 50, 2000):
        table.order(LinearShape(m, 300, 128), bias=False)
    assert set(asked) <= {1, 16, 64, 40, 50, 1024}
    assert {1, 16, 64, 1024} <= set(asked) and len(asked) == len(set(asked))
    assert set(asked) <= set(ROW_COUNTS) or table.order(LinearShape(40, 300, 128), bias=False) is None


def test_small_linears_are_not_worth_a_kernel() -> None:
    assert OrderTable().order(LinearShape(1, 1, 2048), bias=False) is None
    assert Linears().self_test([(1, 2048, False)]) == LinearReport((), 0, ())


def test_orders_are_told_apart_by_inputs_that_cancel() -> None:
    x, weight = cancelling(LinearShape(4, 64, 2048))
    results = [compute(x, weight, None, order, 1) for order in (lanes(), pairs(512), pairs(1024))]
    assert len({result.view(torch.uint8).numpy().tobytes() for result in results}) == len(results)


def test_a_replaced_module_shares_the_parameters_under_their_names() -> None:
    model = nn.Sequential(nn.Linear(64, 32, dtype=torch.bfloat16), nn.ReLU(), nn.Linear(32, 16, False)).eval()
    weights = dict(model.state_dict())
    assert replace_linears(model, Linears()) == [(32, 64, True), (16, 32, False)]
    assert isinstance(model[0], NativeLinear) and isinstance(model[2], nn.Linear)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == {
        name: tensor.data_ptr() for name, tensor in weights.items()
    }
    assert not model[0].training
    x = torch.randn(3, 64).bfloat16()
    assert same(model[0](x), linear(x, weights["0.weight"], weights["0.bias"]))


def test_a_report_says_what_torch_still_computes() -> None:
    report = LinearReport(("lanes",), 5, (LinearShape(1, 60, 2048),))
    assert str(report) == (
        "the kernels have torch's bits in 5 of 6 cases (lanes); torch computes the others, such as 1 x 2048 -> 60"
    )
    assert str(LinearReport(("lanes",), 6, ())) == "the kernels have torch's bits in 6 of 6 cases (lanes)"


def test_rows_that_requests_share_have_the_bits_they_have_alone_and_contexts_those_of_their_length() -> None:
    """Where the order of the sums depends on the number of rows, as through oneDNN at K = 2048."""

    def asked(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        threads = torch.get_num_threads()
        return compute(x, weight, bias, pairs(512) if len(x) == 1 else pairs(1024), threads)

    orders = [order for order in (pairs(512), pairs(1024)) if is_native(order)]
    if len(orders) < 2:
        pytest.skip("no kernels for two orders on this machine")
    linears = Linears(OrderTable(asked, orders))
    x, weight = cancelling(LinearShape(7, 64, 2048))
    with torch.inference_mode():
        one = torch.cat([linears(row, weight) for row in x.split(1)])
        assert not same(linears(x, weight), one), "else this test says nothing"
        groups = torch.cat([linears(x[:3], weight), linears(x[3:4], weight), linears(x[4:], weight)])
        assert not linears.row_invariant(64, 2048, bias=False)
        assert linears.row_invariant(64, 512, bias=False), "one block holds all inputs, of either size"
        assert not Linears(OrderTable(asked, orders[:1])).row_invariant(64, 2048, bias=False)
        with linears.shared_by(SharedRows(contexts=(3, 1, 3))):
            assert same(linears(x[:6], weight), one[:6])
            assert same(linears(x[None], weight), groups[None])
            fp32 = linears(x[:5].float(), weight.float())
            assert torch.equal(fp32, torch.cat([linear(row, weight.float()) for row in x[:5].float().split(1)]))
        assert linears.shared is None
        assert torch.equal(linears(x, weight), compute(x, weight, None, pairs(1024), torch.get_num_threads()))


def by_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A torch that sums the inputs of one row otherwise than those of several, and of many rows in no known order."""
    if len(x) >= 16:
        return backwards(x, weight, bias)
    return compute(x, weight, bias, pairs(64) if len(x) == 1 else pairs(128), torch.get_num_threads())


TABLES = {
    "torch": OrderTable,
    "unknown": lambda: OrderTable(orders=[]),
    "by rows": lambda: OrderTable(by_rows, [order for order in (pairs(64), pairs(128)) if is_native(order)]),
}
GROUPS = [(1, 1, 2, 3, 64), (64, 1, 5, 1, 2), (1, 1, 1), (7,)]


def packed(weight: torch.Tensor) -> PackedMatrix:
    rows = weight.shape[0]
    parts = compressed(weight.view(torch.int16).numpy().view("uint16"), [rows - rows // 3, rows // 3], block_rows=16)
    return PackedMatrix(TensorSpec("weight", *weight.shape), tuple(parts))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("counts", GROUPS, ids=str)
@pytest.mark.parametrize(("n", "k"), [(96, 1408), (33, 2048)])
def test_rows_of_several_prompts_have_the_bits_that_each_prompt_has_alone(
    table: str, counts: tuple[int, ...], n: int, k: int, threads: int
) -> None:
    linears = Linears(TABLES[table]())
    x, weight = cancelling(LinearShape(sum(counts), n, k))
    bias = torch.linspace(-1e-6, 1e-6, n).bfloat16()
    cases = ((x, weight, None), (x, weight, bias), (x, packed(weight), None), (x.float(), weight.float(), None))
    for rows, matrix, added in cases:
        alone = [linears(group, matrix, added) for group in torch.split(rows, counts)]
        with linears.in_groups(counts):
            assert torch.equal(linears(rows, matrix, added), torch.cat(alone))


def test_groups_are_not_computed_as_one_where_the_order_depends_on_the_rows() -> None:
    table = TABLES["by rows"]()
    if table.order(LinearShape(1, 64, 1024), bias=False) is None:
        pytest.skip("no kernels for two orders on this machine")
    linears = Linears(table)
    x, weight = cancelling(LinearShape(6, 64, 1024))
    for matrix in (weight, packed(weight)):
        with linears.in_groups((1, 2, 3)):
            grouped = linears(x, matrix)
        assert not same(linears(x, matrix), grouped)


def test_packed_weights_take_rows_of_several_prompts_in_any_layout() -> None:
    """Torch itself may sum scattered rows in another order than contiguous ones."""
    x, weight = cancelling(LinearShape(6, 64, 256))
    scattered, counts = x.t().contiguous().t(), (1, 2, 3)
    for make in TABLES.values():
        table = make()
        linears = Linears(table)
        alone = [linears(group, packed(weight)) for group in torch.split(scattered, counts)]
        with linears.in_groups(counts):
            grouped = linears(scattered, packed(weight))
            assert same(grouped, torch.cat(alone))
            if None not in [table.order(LinearShape(count, 64, 256), bias=False) for count in counts]:
                assert same(grouped, linears(x, packed(weight)))


@pytest.mark.parametrize("table", TABLES)
def test_after_an_error_rows_are_of_one_prompt_again(table: str) -> None:
    linears = Linears(TABLES[table]())
    x, weight = cancelling(LinearShape(6, 64, 256))
    chunk = packed(weight)
    damaged = PackedMatrix(chunk.spec, (chunk.parts[0], CascadePart(chunk.parts[1].rows, b"", chunk.parts[1].sm)))
    with pytest.raises(CorruptData), linears.in_groups((1, 2, 3)):
        linears(x, damaged)
    for rows in (x, x[:4], x[0], x.view(2, 3, 256)):
        fresh = Linears(TABLES[table]())
        assert same(linears(rows, weight), fresh(rows, weight))
        assert same(linears(rows, chunk), fresh(rows, chunk))
