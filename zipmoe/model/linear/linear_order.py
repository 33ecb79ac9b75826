"""Finds the order in which torch sums the products of a bf16 linear, by comparing results of torch and the kernels.

torch's own code has one order for every shape. With oneDNN, on CPUs for which oneDNN has bf16 code, the order depends
on the shape. The compared linears have products that cancel exactly. Their outputs consist of the rounding errors of
the partial sums alone, so a different order gives different bits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear

from zipmoe.kernels.linear import LinearShape, Order, is_native, lanes, pairs, run_linear

ROW_COUNTS = (1, 2, 3, 4, 8, 16, 64, 512, 1024)
"""Numbers of rows that are tested. If two neighbours have the same order, numbers between are assumed to have it."""

FEW_ROWS = 16
"""Most rows with tests of up to `MOST_OUTPUTS` outputs. With more rows, `MOST_OUTPUTS_OF_MANY_ROWS` are enough."""

MOST_OUTPUTS, MOST_OUTPUTS_OF_MANY_ROWS, OUTPUTS_A_THREAD = 1024, 256, 64
FEWEST_OUTPUTS = 8
"""Linears with fewer outputs are left to torch: the kernels would gain nothing."""

TINY = 2.0**-63
"""Factor that makes the products subnormal numbers. A bf16 instruction takes subnormal numbers for zero; code that
emulates the instruction may keep them."""

DRAWN_ROWS = 64
"""Rows of weights that are drawn. The matrix repeats these rows: drawing millions of weights would take seconds."""

SUMS_COMPARED = 256
"""Least number of outputs that are compared. A small linear has few outputs, and some are the same in any order."""

SUMS_COMPARED_WITH_BIAS = 8192
"""The same with a bias. Code that rounds before it adds the bias differs only if a sum is halfway between outputs."""

Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class OrderTable:
    """The summation orders of linears on the machine. The first query of a shape runs the test of the shape.

    Thread: one at a time.
    """

    def __init__(self, stock: Linear = linear, orders: Sequence[Order] | None = None) -> None:
        """Makes an empty table.

        Args:
            stock: the linear that the kernels have to equal; tests pass another function.
            orders: the candidates; by default all orders that have fast kernels on the machine.
        """
        if orders is None:
            orders = [order for order in (lanes(), pairs(1024), pairs(512), *_by_threads()) if is_native(order)]
        self._orders = list(orders)
        self._stock = stock
        self._known: dict[tuple[LinearShape, bool, int], Order | None] = {}
        self._asked: dict[tuple[LinearShape, bool, int], Order | None] = {}

    def order(self, shape: LinearShape, *, bias: bool) -> Order | None:
        """Finds the order that gives torch's bits with torch's present number of threads; None if no order does.

        Args:
            shape: sizes of the linear, with contiguous inputs and weights.
            bias: whether the linear has a bias.
        """
        threads = torch.get_num_threads()
        key = (shape, bias, threads)
        if key not in self._known:
            around = {self._ask(LinearShape(m, shape.n, shape.k), bias, threads) for m in _neighbours(shape.m)}
            self._known[key] = around.pop() if len(around) == 1 else self._ask(shape, bias, threads)
        return self._known[key]

    def order_of_few(self, shape: LinearShape, *, bias: bool) -> Order | None:
        """Finds the order of a linear with fewer outputs than `order` tests; its weights are one row or a few."""
        threads = torch.get_num_threads()
        key = (shape, bias, threads)
        if key not in self._asked:
            self._asked[key] = self._find(shape, bias, threads)
        return self._asked[key]

    def _ask(self, shape: LinearShape, bias: bool, threads: int) -> Order | None:
        if shape.n < FEWEST_OUTPUTS:
            return None
        most = MOST_OUTPUTS if shape.m <= FEW_ROWS else MOST_OUTPUTS_OF_MANY_ROWS
        most = max(most, OUTPUTS_A_THREAD * threads)
        asked = LinearShape(shape.m, min(shape.n, most), shape.k)
        key = (asked, bias, threads)
        if key not in self._asked:
            found = self._find(asked, bias, threads)
            self._asked[key] = found
            if found is not None:  # likeliest for the next shape, so tested first
                self._orders.remove(found)
                self._orders.insert(0, found)
        return self._asked[key]

    def _find(self, shape: LinearShape, bias: bool, threads: int) -> Order | None:
        left = list(self._orders)
        compared = seed = 0
        with torch.inference_mode():
            while left and compared < (SUMS_COMPARED_WITH_BIAS if bias else SUMS_COMPARED):
                x, weight = cancelling(shape, seed)
                added = torch.full((shape.n,), 2.0**-20, dtype=torch.bfloat16) if bias else None
                left = self._matching(left, x, weight, added, threads)
                left = self._matching(left, x * TINY, weight * TINY, None if added is None else added * 0, threads)
                compared += shape.m * shape.n
                seed += 1
        return left[0] if left else None

    def _matching(
        self,
        orders: list[Order],
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        threads: int,
    ) -> list[Order]:
        if not orders:
            return []
        wanted = self._stock(x, weight, bias)
        return [order for order in orders if torch.equal(compute(x, weight, bias, order, threads), wanted)]


def _by_threads() -> list[Order]:
    """Returns orders in which each thread sums a part of the inputs, as oneDNN does for few outputs."""
    counts = dict.fromkeys((2, torch.get_num_threads()))
    return [pairs(512, count) for count in counts if count > 1]


def _neighbours(m: int) -> set[int]:
    """Returns the tested numbers of rows on both sides of `m`, or `m` alone if `m` is tested."""
    place = bisect_left(ROW_COUNTS, m)
    if m in ROW_COUNTS:
        return {m}
    return {ROW_COUNTS[max(place - 1, 0)], ROW_COUNTS[min(place, len(ROW_COUNTS) - 1)]}


def compute(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, order: Order, threads: int
) -> torch.Tensor:
    """Computes a linear with the kernels.

    Args:
        x: bf16 in host memory, shape (..., k), contiguous.
        weight: bf16 in host memory, shape (n, k), contiguous.
        bias: bf16 in host memory, shape (n,), contiguous.
        order: order of the sums.
        threads: threads that compute, the calling thread included.

    Returns:
        bf16, shape (..., n).

    Cost: as `zipmoe.kernels.linear.linear_bf16`.
    """
    n, k = weight.shape
    out = x.new_empty((*x.shape[:-1], n))
    added = 0 if bias is None else bias.data_ptr()
    rows = x.numel() // k
    run_linear(x.data_ptr(), weight.data_ptr(), added, out.data_ptr(), rows, n, k, order, threads)
    return out


def cancelling(shape: LinearShape, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws bf16 rows and weights with products that cancel exactly, so that sums are rounding errors alone."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape.m, shape.k, generator=generator).bfloat16()
    drawn = torch.randn(min(shape.n, DRAWN_ROWS), shape.k, generator=generator).bfloat16()
    places = torch.randperm(shape.k, generator=generator)
    first, second = places[: shape.k // 2], places[shape.k // 2 : shape.k // 2 * 2]
    x[:, second] = x[:, first]
    drawn[:, second] = -drawn[:, first]
    return x, drawn.repeat(-(-shape.n // len(drawn)), 1)[: shape.n].contiguous()
