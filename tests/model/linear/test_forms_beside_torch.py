"""Products from in-memory forms against torch's own, where torch sums in an order that the form takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from tests.kernels import linear_twin
from tests.kernels.forms.cases import KINDS, NIBBLES, TILES, FormCase, needs_tiles
from tests.model.linear.test_native_linear import ONEDNN, same
from zipmoe.kernels.linear import LinearShape
from zipmoe.model.linear.linear_order import OrderTable, cancelling

every_form = pytest.mark.parametrize("case", [pytest.param(TILES, marks=needs_tiles), NIBBLES[0]], ids=str)

SHAPES = [(2816, 2048), (2048, 1408), (768, 2048), (1000, 768), (60, 2048), (96, 260)]
ROWS = range(1, 17)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def orders() -> dict[int, OrderTable]:
    """A table for each number of threads: finding an order takes longer than using it."""
    return {1: OrderTable(), 2: OrderTable()}


def numbers(tensor: torch.Tensor) -> linear_twin.Bf16:
    return tensor.view(torch.int16).numpy().view(np.uint16)


def tensor(bits: linear_twin.Bf16) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def compared(
    case: FormCase,
    orders: OrderTable,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    threads: int,
) -> int:
    """Compares one to sixteen rows and returns how many numbers of rows have an order that the form takes."""
    n, k = weight.shape
    matrix = case.made(numbers(weight))
    added = None if bias is None else numbers(bias)
    known = 0
    for m in ROWS:
        order = orders.order(LinearShape(m, n, k), bias=bias is not None)
        if order is None or not case.form.takes(order):
            continue
        known += 1
        found = case.compute(numbers(x[:m]), matrix, n, order, added, threads)
        assert same(tensor(found), linear(x[:m], weight, bias)), f"{m} rows of {n} x {k} in {order}"
    return known


@every_form
@pytest.mark.parametrize(("n", "k"), SHAPES)
@torch.inference_mode()
def test_no_output_differs_from_torch(
    case: FormCase, n: int, k: int, threads: int, orders: dict[int, OrderTable]
) -> None:
    x, weight = cancelling(LinearShape(16, n, k), 3)
    known = compared(case, orders[threads], x, weight, None, threads)
    bias = torch.randn(n, generator=torch.Generator().manual_seed(n)).mul_(1e-5).bfloat16()
    compared(case, orders[threads], x, weight, bias, threads)
    if known == 0:
        pytest.skip(f"torch {torch.__version__} sums in an order that the form does not take")
    rng = np.random.default_rng([n, k])
    usual = torch.randn(16, k, generator=torch.Generator().manual_seed(k)).bfloat16()
    for name, kind in KINDS.items():
        if n * k < 1 << 20 or name in ("student", "random_bits"):  # the others would take seconds to draw
            compared(case, orders[threads], usual, tensor(kind(rng, n, k)), None, threads)


@every_form
@torch.inference_mode()
def test_special_numbers_come_out_as_in_torch(case: FormCase, threads: int, orders: dict[int, OrderTable]) -> None:
    x, weight = (tensor(each) for each in linear_twin.special(16, 48, 2048))
    if compared(case, orders[threads], x, weight, None, threads) == 0:
        pytest.skip(f"torch {torch.__version__} sums in an order that the form does not take")


@needs_tiles
@pytest.mark.slow
@pytest.mark.own_process
@pytest.mark.skipif(ONEDNN in os.environ, reason="this is that process")
def test_all_this_holds_without_amx() -> None:
    """With AMX, torch sums in an order that no kernel knows, and the tests above are skipped."""
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n0",
            "-p",
            "no:cacheprovider",
            __file__,
            "-k",
            "tile and (differs or special)",
        ],
        env={**os.environ, ONEDNN: "AVX512_CORE_BF16"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "skipped" not in ended.stdout, ended.stdout[-3000:]
