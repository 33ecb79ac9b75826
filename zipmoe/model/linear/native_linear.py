"""Computes the bf16 linears of a model: by the kernels if the kernels have torch's bits, by torch otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch.nn.functional import linear as stock_linear

from zipmoe.kernels.linear import LinearShape, Order
from zipmoe.kernels.memory_form import MemoryForm
from zipmoe.model.linear.compressed import CompressedMatrix, CompressedWeight
from zipmoe.model.linear.linear_order import FEWEST_OUTPUTS, ROW_COUNTS, OrderTable, compute
from zipmoe.model.linear.matrices import Matrix
from zipmoe.model.linear.packed import PackedMatrix

TESTED_ROWS = (1, 2, 3, 4, 16, 64)
"""Numbers of rows that the self-test at the start covers. Other numbers are tested at their first call."""


@dataclass(frozen=True)
class LinearReport:
    """Result of the self-test: the linears that the kernels compute, and the linears that are left to torch."""

    orders: tuple[str, ...]
    """Names of the known summation orders of torch."""

    matched: int
    """Number of pairs of weight shape and number of rows for which the kernels have torch's bits."""

    unmatched: tuple[LinearShape, ...]
    """Shapes for which the kernels do not have torch's bits."""

    def __str__(self) -> str:
        total = self.matched + len(self.unmatched)
        if not self.matched:
            return f"torch computes all linears: in none of {total} cases do the kernels have its bits"
        known = f"the kernels have torch's bits in {self.matched} of {total} cases ({', '.join(self.orders)})"
        if not self.unmatched:
            return known
        some = ", ".join(f"{shape.m} x {shape.k} -> {shape.n}" for shape in self.unmatched[:4])
        return f"{known}; torch computes the others, such as {some}"


@dataclass(frozen=True)
class SharedRows:
    """Describes a pass that several requests share with one row each.

    Every linear gives each row the bits that the row has alone. A linear over all cached tokens of the requests, such
    as the expansion of latents, is an exception: it computes the rows of each request as a separate group.
    """

    contexts: tuple[int, ...] = ()
    """Rows of each request in linears over cached tokens, in order; empty if the model has no such linear."""


Watch = Callable[["Linears", torch.Tensor, torch.Tensor | CompressedMatrix, "torch.Tensor | None"], torch.Tensor]
"""Sees a linear before it is computed: (linears, x, weight, bias) -> the result of the linear."""


class Linears:
    """Computes bf16 linears in host memory with the bits of torch.

    Thread: one at a time.
    """

    def __init__(self, table: OrderTable | None = None) -> None:
        """Takes a table of summation orders, by default a new table."""
        self._table = OrderTable() if table is None else table
        self._orders: dict[tuple[int, int, int, bool, int], Order | None] = {}
        self._shared: SharedRows | None = None
        self._groups: tuple[int, ...] = ()
        self._watch: Watch | None = None
        self._scratch = torch.empty(0, dtype=torch.uint8)

    @property
    def shared(self) -> SharedRows | None:
        """The requests of the current pass; None if all rows belong to one request."""
        return self._shared

    @contextmanager
    def shared_by(self, rows: SharedRows) -> Iterator[None]:
        """Declares that the linears inside the `with` block get rows of several requests."""
        self._shared = rows
        try:
            yield
        finally:
            self._shared = None

    @contextmanager
    def in_groups(self, counts: Sequence[int]) -> Iterator[None]:
        """Declares that the linears inside the `with` block get rows of several prompts.

        Each prompt gets the bits that the prompt has alone.

        Args:
            counts: rows of each prompt, in order.
        """
        self._groups = tuple(counts)
        try:
            yield
        finally:
            self._groups = ()

    @contextmanager
    def watched_by(self, watch: Watch) -> Iterator[None]:
        """Hands every linear inside the `with` block to `watch`, which computes it by calling back."""
        self._watch = watch
        try:
            yield
        finally:
            self._watch = None

    def known_order(
        self, x: torch.Tensor, weight: torch.Tensor | CompressedMatrix, bias: torch.Tensor | None
    ) -> Order | None:
        """Returns the order in which the kernels have the bits of a linear of one request; None if they have not.

        Linears with few outputs have one, too. `__call__` leaves those to torch.
        """
        if not _computable(x, weight, bias):
            return None
        n, k = weight.shape
        if n < FEWEST_OUTPUTS and isinstance(weight, torch.Tensor):
            return self._table.order_of_few(LinearShape(x.numel() // k, n, k), bias=bias is not None)
        return self._order_for(x.numel() // k, weight, bias)

    def __call__(self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Computes a linear with the bits of `torch.nn.functional.linear` on the rows of the same request alone.

        Args:
            x: shape (..., k), any dtype, device and layout; for packed weights bf16 in host memory.
            weight: shape (n, k), also packed or compressed. The kernels do not write recovered weights to memory.
            bias: shape (n,); not with packed weights.

        Returns:
            Shape (..., n).

        Raises:
            CorruptData: a chunk does not hold exactly the exponents of its rows.

        Cost: the computation and 3 microseconds more than torch; the first call of a shape may run a self-test.
        """
        weight = _matrix_of(weight)
        if self._watch is not None and not isinstance(weight, PackedMatrix):
            watch, self._watch = self._watch, None
            try:
                return watch(self, x, weight, bias)
            finally:
                self._watch = watch
        if self._groups:
            return self._grouped(x, weight, bias)
        if isinstance(weight, PackedMatrix):
            return self._packed(x, weight)
        if self._shared is None or not x.numel():
            return self._at_once(x, weight, bias)
        contexts = self._shared.contexts
        if contexts and x.numel() // x.shape[-1] == sum(contexts):
            groups = torch.split(x.reshape(-1, x.shape[-1]), list(contexts))
            each = [self._at_once(group, weight, bias) for group in groups]
            return torch.cat(each).view(*x.shape[:-1], weight.shape[0])
        return self.alone(x, weight, bias)

    def _at_once(
        self, x: torch.Tensor, weight: torch.Tensor | CompressedMatrix, bias: torch.Tensor | None
    ) -> torch.Tensor:
        order = None
        if _computable(x, weight, bias):
            order = self._order_for(x.numel() // weight.shape[1], weight, bias)
        if order is not None:
            return _product(x, weight, bias, order)
        if isinstance(weight, CompressedMatrix):
            return self._at_once(x, self.recovered(weight), bias)
        return stock_linear(x, weight, bias)

    def _packed(self, x: torch.Tensor, weight: PackedMatrix) -> torch.Tensor:
        """Computes from chunks. If the kernels do not have torch's bits, recovers the matrix and leaves it to torch.

        The order is that of a linear without bias.
        """
        n, k = weight.shape
        rows = x.reshape(-1, k).contiguous()
        order = self._order_for(rows.shape[0] if self._shared is None else 1, weight, None)
        if order is None:
            return self(x, weight.recover())
        return _product(rows, weight, None, order).view(*x.shape[:-1], n)

    def _grouped(self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None) -> torch.Tensor:
        """Computes each group with its own order; `x` has shape (rows, k).

        Adjacent groups with the same order are computed in one call.
        """
        computable = isinstance(weight, PackedMatrix) or _computable(x, weight, bias)
        outputs, begin = [], 0
        for order, alike in groupby(self._groups, lambda m: self._order_for(m, weight, bias) if computable else None):
            counts = list(alike)
            rows = x[begin : begin + sum(counts)]
            begin += len(rows)
            if order is None:
                matrix = self.recovered(weight)
                outputs += [self._at_once(group, matrix, bias) for group in torch.split(rows, counts)]
            else:
                outputs.append(_product(rows.contiguous(), weight, bias, order))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def alone(
        self, x: torch.Tensor, weight: torch.Tensor | CompressedMatrix, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Computes a linear in which each row has the bits of torch's linear on that row alone.

        A batched request therefore answers as if it were alone. If no kernel has torch's bits for one row, torch
        computes one row after the other.
        """
        weight = weight.matrix if isinstance(weight, CompressedWeight) else weight
        rows = x.reshape(-1, x.shape[-1])
        if _computable(rows, weight, bias):
            order = self._order_for(1, weight, bias)
            if order is not None:
                return _product(rows, weight, bias, order).view(*x.shape[:-1], weight.shape[0])
        if isinstance(weight, CompressedMatrix):
            return self.alone(x, self.recovered(weight), bias)
        each = [stock_linear(row, weight, bias) for row in torch.split(rows, 1)]
        return torch.cat(each).view(*x.shape[:-1], weight.shape[0])

    def recovered(self, weight: Matrix) -> torch.Tensor:
        """Returns a matrix as bf16 rows; those of a compressed one are valid until the next call."""
        if isinstance(weight, torch.Tensor):
            return weight
        if isinstance(weight, PackedMatrix):
            return weight.recover()
        # Stock's weights require gradients, on which the way of a product in torch depends.
        return weight.recover(self._scratch).requires_grad_()

    def product(self, rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """Computes `rows @ matrix` by torch; if several requests share the rows, each row separately.

        Args:
            rows: shape (m, k).
            matrix: shape (k, n).
        """
        if self._shared is None or len(rows) == 1:
            return rows @ matrix
        return torch.cat([row @ matrix for row in torch.split(rows, 1)])

    def self_test(self, shapes: Iterable[tuple[int, int, bool]]) -> LinearReport:
        """Tests the orders of weight shapes, given as (n, k, whether there is a bias), and reports the results."""
        worth = [each for each in dict.fromkeys(shapes) if each[0] >= FEWEST_OUTPUTS]
        cases = [(LinearShape(m, n, k), bias) for n, k, bias in worth for m in TESTED_ROWS]
        orders = [self._table.order(shape, bias=bias) for shape, bias in cases]
        known = [order for order in orders if order is not None]
        return LinearReport(
            orders=tuple(dict.fromkeys(str(order) for order in known)),
            matched=len(known),
            unmatched=tuple(shape for (shape, _), order in zip(cases, orders, strict=True) if order is None),
        )

    def rows_in_form(self, form: MemoryForm, n: int, k: int, *, bias: bool) -> tuple[int, ...]:
        """Returns the tested numbers of rows whose linear the kernels compute from a form, with torch's bits."""
        orders = {m: self._table.order(LinearShape(m, n, k), bias=bias) for m in ROW_COUNTS}
        return tuple(m for m, order in orders.items() if order is not None and form.takes(order))

    def keep_scratch(self, nbytes: int) -> None:
        """Allocates the memory in which compressed matrices are recovered; a larger matrix gets memory of its own."""
        self._scratch = torch.empty(nbytes, dtype=torch.uint8)

    def row_invariant(self, n: int, k: int, *, bias: bool) -> bool:
        """Whether a row of a linear has the same known order, and so the same bits, among any number of rows."""
        orders = [self._table.order(LinearShape(m, n, k), bias=bias) for m in ROW_COUNTS]
        first = orders[0]
        return first is not None and all(order is not None and order.same_sums(first, k) for order in orders)

    def knows_single_rows(self, n: int, k: int, *, bias: bool) -> bool:
        """Whether the kernels have the bits of a linear of one row, so that rows of several requests share a call."""
        return self._order(1, n, k, bias, torch.get_num_threads()) is not None

    def _order_for(self, m: int, weight: Matrix, bias: torch.Tensor | None) -> Order | None:
        """Returns the order in which the kernels compute m rows from a matrix as it is; None if they cannot."""
        n, k = weight.shape
        order = self._order(m, n, k, bias is not None, torch.get_num_threads())
        return None if order is None or not (isinstance(weight, torch.Tensor) or weight.takes(order)) else order

    def _order(self, m: int, n: int, k: int, bias: bool, threads: int) -> Order | None:
        """Returns the table's order. `Linears` caches the order under a key that is cheaper to look up."""
        key = (m, n, k, bias, threads)
        if key in self._orders:
            return self._orders[key]
        order = self._orders[key] = self._table.order(LinearShape(m, n, k), bias=bias)
        return order


def _matrix_of(weight: Matrix) -> Matrix:
    """Returns the matrix behind a module's weight."""
    return weight.matrix if isinstance(weight, CompressedWeight) else weight


def _product(x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, order: Order) -> torch.Tensor:
    """Computes a linear by the kernels in an order that the matrix takes."""
    threads = torch.get_num_threads()
    if isinstance(weight, torch.Tensor):
        return compute(x, weight, bias, order, threads)
    return weight.product(x, bias, order, threads)


def _computable(x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None) -> bool:
    """Whether the kernels can compute a linear at all: contiguous bf16 in host memory, nothing empty, no gradients."""
    if isinstance(weight, torch.Tensor) and not (
        weight.dtype is torch.bfloat16
        and weight.is_cpu
        and weight.is_contiguous()
        and weight.dim() == 2
        and weight.numel() > 0
    ):
        return False
    return (
        x.dtype is torch.bfloat16
        and x.is_cpu
        and x.is_contiguous()
        and x.dim() > 0
        and x.numel() > 0
        and (bias is None or (bias.dtype is torch.bfloat16 and bias.is_cpu and bias.is_contiguous()))
        and not torch.is_grad_enabled()
    )
