"""Which summation order torch takes for a linear, found out by asking it.

torch itself has one order for every shape; through oneDNN, on CPUs that it has bf16 code for, the order depends on the
shape. What torch is asked are linears whose products cancel exactly, so that nothing but the rounding of the partial
sums is left: there any other order gives other bits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear

from zipmoe.kernels.linear import LinearShape, Order, is_native, lanes, pairs, run_linear

ROW_COUNTS = (1, 2, 3, 4, 8, 16, 64, 512, 1024)
"""Numbers of rows that torch is asked about; one between two that agree is taken to be like them."""

FEW_ROWS = 16
"""Up to so many rows torch is asked about all outputs, or `MOST_OUTPUTS`; for more rows a few tell as much."""

MOST_OUTPUTS, MOST_OUTPUTS_OF_MANY_ROWS, OUTPUTS_A_THREAD = 1024, 256, 64
FEWEST_OUTPUTS = 8
"""Linears with fewer outputs are left to torch: there is nothing to gain."""

TINY = 2.0**-63
"""Inputs and weights of this size have products that are subnormal numbers: code that emulates an instruction may keep
what the instruction takes for zero."""

DRAWN_ROWS = 64
"""Rows of weights that are drawn; a matrix repeats them, because drawing millions of weights would take seconds."""

SUMS_COMPARED = 256
"""At least so many outputs are compared: of the few that a small linear has, some come out the same in any order."""

SUMS_COMPARED_WITH_BIAS = 8192
"""With a bias so many: code that rounds before it adds one differs only where a sum is halfway between two outputs."""

Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class OrderTable:
    """The orders of linears on this machine, each found out when it is first asked for.

    Thread: one at a time.
    """

    def __init__(self, stock: Linear = linear, orders: Sequence[Order] | None = None) -> None:
        """Makes an empty table.

        Args:
            stock: what to be equal to; tests put another function in its place.
            orders: the candidates; by default all that this machine has fast kernels for.
        """
        if orders is None:
            orders = [order for order in (lanes(), pairs(1024), pairs(512), *_by_threads()) if is_native(order)]
        self._orders = list(orders)
        self._stock = stock
        self._known: dict[tuple[LinearShape, bool, int], Order | None] = {}
        self._asked: dict[tuple[LinearShape, bool, int], Order | None] = {}

    def order(self, shape: LinearShape, *, bias: bool) -> Order | None:
        """The order that gives torch's bits with its present number of threads; None if none does.

        Args:
            shape: of the linear; contiguous inputs and weights are meant.
            bias: whether it has one.
        """
        threads = torch.get_num_threads()
        key = (shape, bias, threads)
        if key not in self._known:
            around = {self._ask(LinearShape(m, shape.n, shape.k), bias, threads) for m in _neighbours(shape.m)}
            self._known[key] = around.pop() if len(around) == 1 else self._ask(shape, bias, threads)
        return self._known[key]

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
            if found is not None:  # the likeliest next time
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
    """Orders in which each thread sums some of the inputs, as oneDNN does where there are few outputs."""
    counts = dict.fromkeys((2, torch.get_num_threads()))
    return [pairs(512, count) for count in counts if count > 1]


def _neighbours(m: int) -> set[int]:
    """The numbers of rows next to `m` that torch is asked about, or `m` itself if it is one of them."""
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
        order: of the sums.
        threads: that compute, this one included.

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
    """Rows and weights, bf16, whose products cancel exactly: what is left is the rounding of the partial sums."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape.m, shape.k, generator=generator).bfloat16()
    drawn = torch.randn(min(shape.n, DRAWN_ROWS), shape.k, generator=generator).bfloat16()
    places = torch.randperm(shape.k, generator=generator)
    first, second = places[: shape.k // 2], places[shape.k // 2 : shape.k // 2 * 2]
    x[:, second] = x[:, first]
    drawn[:, second] = -drawn[:, first]
    return x, drawn.repeat(-(-shape.n // len(drawn)), 1)[: shape.n].contiguous()
