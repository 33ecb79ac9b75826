"""Computes the bf16 linears of a model: by the kernels if the kernels have torch's bits, by torch otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn
from torch.nn.functional import linear as stock_linear

from zipmoe.kernels.linear import LinearShape, Order, run_cascade
from zipmoe.model.linear.linear_order import FEWEST_OUTPUTS, ROW_COUNTS, OrderTable, compute
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


Watch = Callable[["Linears", torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]
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

    def known_order(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Order | None:
        """Returns the order in which the kernels have the bits of a linear of one request; None if they have not.

        Linears with few outputs have one, too. `__call__` leaves those to torch.
        """
        if not _computable(x, weight, bias):
            return None
        n, k = weight.shape
        if n < FEWEST_OUTPUTS:
            return self._table.order_of_few(LinearShape(x.numel() // k, n, k), bias=bias is not None)
        return self._order(x.numel() // k, n, k, bias is not None, torch.get_num_threads())

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor | PackedMatrix, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Computes a linear with the bits of `torch.nn.functional.linear` on the rows of the same request alone.

        Args:
            x: shape (..., k), any dtype, device and layout; for packed weights bf16 in host memory.
            weight: shape (n, k), or a packed matrix. The kernels do not write recovered weights to memory.
            bias: shape (n,); not with packed weights.

        Returns:
            Shape (..., n).

        Raises:
            CorruptData: a chunk does not hold exactly the exponents of its rows.

        Cost: the computation and 3 microseconds more than torch; the first call of a shape may run a self-test.
        """
        if self._watch is not None and isinstance(weight, torch.Tensor):
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

    def _at_once(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not _computable(x, weight, bias):
            return stock_linear(x, weight, bias)
        n, k = weight.shape
        threads = torch.get_num_threads()
        order = self._order(x.numel() // k, n, k, bias is not None, threads)
        return stock_linear(x, weight, bias) if order is None else compute(x, weight, bias, order, threads)

    def _packed(self, x: torch.Tensor, weight: PackedMatrix) -> torch.Tensor:
        """Computes from chunks. If the kernels do not have torch's bits, recovers the matrix and leaves it to torch.

        The order is that of a linear without bias.
        """
        n, k = weight.shape
        rows = x.reshape(-1, k).contiguous()
        threads = torch.get_num_threads()
        order = self._order(rows.shape[0] if self._shared is None else 1, n, k, False, threads)
        if order is None:
            return self(x, weight.recover())
        return _compute_packed(rows, weight, order, threads).view(*x.shape[:-1], n)

    def _grouped(self, x: torch.Tensor, weight: torch.Tensor | PackedMatrix, bias: torch.Tensor | None) -> torch.Tensor:
        """Computes each group with its own order; `x` has shape (rows, k).

        Adjacent groups with the same order are computed in one call.
        """
        n, k = weight.shape
        threads = torch.get_num_threads()
        computable = isinstance(weight, PackedMatrix) or _computable(x, weight, bias)
        outputs, begin = [], 0
        for order, alike in groupby(
            self._groups, lambda m: self._order(m, n, k, bias is not None, threads) if computable else None
        ):
            counts = list(alike)
            rows = x[begin : begin + sum(counts)]
            begin += len(rows)
            if order is None:
                matrix = weight.recover() if isinstance(weight, PackedMatrix) else weight
                outputs += [stock_linear(group, matrix, bias) for group in torch.split(rows, counts)]
            elif isinstance(weight, PackedMatrix):
                outputs.append(_compute_packed(rows.contiguous(), weight, order, threads))
            else:
                outputs.append(compute(rows, weight, bias, order, threads))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def alone(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Computes a linear in which each row has the bits of torch's linear on that row alone.

        A batched request therefore answers as if it were alone. If no kernel has torch's bits for one row, torch
        computes one row after the other.
        """
        rows = x.reshape(-1, x.shape[-1])
        if _computable(rows, weight, bias):
            n, k = weight.shape
            threads = torch.get_num_threads()
            order = self._order(1, n, k, bias is not None, threads)
            if order is not None:
                return compute(rows, weight, bias, order, threads).view(*x.shape[:-1], n)
        each = [stock_linear(row, weight, bias) for row in torch.split(rows, 1)]
        return torch.cat(each).view(*x.shape[:-1], weight.shape[0])

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

    def row_invariant(self, n: int, k: int, *, bias: bool) -> bool:
        """Whether a row of a linear has the same known order, and so the same bits, among any number of rows."""
        orders = [self._table.order(LinearShape(m, n, k), bias=bias) for m in ROW_COUNTS]
        first = orders[0]
        return first is not None and all(order is not None and order.same_sums(first, k) for order in orders)

    def knows_single_rows(self, n: int, k: int, *, bias: bool) -> bool:
        """Whether the kernels have the bits of a linear of one row, so that rows of several requests share a call."""
        return self._order(1, n, k, bias, torch.get_num_threads()) is not None

    def _order(self, m: int, n: int, k: int, bias: bool, threads: int) -> Order | None:
        """Returns the table's order. `Linears` caches the order under a key that is cheaper to look up."""
        key = (m, n, k, bias, threads)
        if key in self._orders:
            return self._orders[key]
        order = self._orders[key] = self._table.order(LinearShape(m, n, k), bias=bias)
        return order


class RowCall:
    """A call of a linear with a single row, to be computed together with rows of other requests."""

    def __init__(self, row: torch.Tensor) -> None:
        """Takes the row, shape (..., k) with k numbers, contiguous."""
        self.row = row
        self.result = row


class NativeLinear(nn.Linear):
    """A linear module that has stock's parameters under stock's names and computes by `Linears`."""

    linears: Linears
    _meet: Callable[[NativeLinear, RowCall], bool] | None = None

    @classmethod
    def of(cls, stock: nn.Linear, linears: Linears) -> NativeLinear:
        """Makes a module that shares the parameters of `stock`."""
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module.in_features, module.out_features = stock.in_features, stock.out_features
        module.weight, module.bias = stock.weight, stock.bias
        module.linears = linears
        return module.train(stock.training)

    def knows_single_rows(self) -> bool:
        """Whether the kernels compute a single row of the linear."""
        return self.linears.knows_single_rows(self.out_features, self.in_features, bias=self.bias is not None)

    def meet_by(self, meet: Callable[[NativeLinear, RowCall], bool]) -> None:
        """Sets a function that may have a single row computed together with other rows, and returns whether it has."""
        self._meet = meet

    def compute(self, calls: Sequence[RowCall]) -> None:
        """Computes rows of several requests in one call, each with the bits that it has alone."""
        rows = torch.cat([call.row.view(1, -1) for call in calls])
        outputs = torch.split(self.linears.alone(rows, self.weight, self.bias), 1)
        for call, output in zip(calls, outputs, strict=True):
            call.result = output.view(*call.row.shape[:-1], self.out_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """Computes the linear. The argument has the same name as in `torch.nn.Linear`."""
        if self._meet is not None and input.numel() == self.in_features and input.is_contiguous():
            call = RowCall(input)
            if self._meet(self, call):
                return call.result
        return self.linears(input, self.weight, self.bias)


def replace_linears(model: nn.Module, linears: Linears) -> list[tuple[int, int, bool]]:
    """Replaces every `torch.nn.Linear` of a model with a `NativeLinear`; subclasses of `torch.nn.Linear` stay.

    Returns:
        (n, k, whether there is a bias) of each replaced module, for `Linears.self_test`.
    """
    shapes = []
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            model.set_submodule(name, NativeLinear.of(module, linears))
            shapes.append((module.out_features, module.in_features, module.bias is not None))
    return shapes


def _compute_packed(rows: torch.Tensor, weight: PackedMatrix, order: Order, threads: int) -> torch.Tensor:
    out = rows.new_empty((rows.shape[0], weight.shape[0]))
    run_cascade(rows.data_ptr(), weight.weights, out.data_ptr(), rows.shape[0], order, threads)
    return out


def _computable(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the kernels can compute a linear at all: contiguous bf16 in host memory, nothing empty, no gradients."""
    return (
        x.dtype is torch.bfloat16
        and weight.dtype is torch.bfloat16
        and x.is_cpu
        and weight.is_cpu
        and x.is_contiguous()
        and weight.is_contiguous()
        and weight.dim() == 2
        and x.dim() > 0
        and x.numel() > 0
        and weight.numel() > 0
        and (bias is None or (bias.dtype is torch.bfloat16 and bias.is_cpu and bias.is_contiguous()))
        and not torch.is_grad_enabled()
    )
