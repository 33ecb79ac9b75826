"""bf16 linears of a model: by the kernels where they give torch's bits on this machine, by torch where not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
"""Numbers of rows that the self-test at start asks torch about; others when they first come."""


@dataclass(frozen=True)
class LinearReport:
    """What the self-test found: which linears the kernels compute, and which are left to torch."""

    orders: tuple[str, ...]
    """The summation orders that torch takes, those that are known."""

    matched: int
    """Pairs of a weight shape and a number of rows on which the kernels give torch's bits."""

    unmatched: tuple[LinearShape, ...]
    """Those on which they do not."""

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
    """One row each of several requests, which go through a pass together.

    Every linear gives each row the bits that it has alone, but for one over all that a request has cached, such as
    latents: there the rows of each request are computed as a group of their own.
    """

    contexts: tuple[int, ...] = ()
    """Rows of each request in linears over what is cached, in order; empty if the model has none."""


class Linears:
    """Computes bf16 linears in host memory with the bits of torch.

    Thread: one at a time.
    """

    def __init__(self, table: OrderTable | None = None) -> None:
        """Uses the orders of a table, by default a new one."""
        self._table = OrderTable() if table is None else table
        self._orders: dict[tuple[int, int, int, bool, int], Order | None] = {}
        self._shared: SharedRows | None = None
        self._groups: tuple[int, ...] = ()

    @property
    def shared(self) -> SharedRows | None:
        """Whose the rows are of the pass that is being computed; None where all are of one request."""
        return self._shared

    @contextmanager
    def shared_by(self, rows: SharedRows) -> Iterator[None]:
        """Inside, linears are called with the rows of several requests."""
        self._shared = rows
        try:
            yield
        finally:
            self._shared = None

    @contextmanager
    def in_groups(self, counts: Sequence[int]) -> Iterator[None]:
        """Inside, linears are called with so many rows of each of several prompts, which get the bits of each alone."""
        self._groups = tuple(counts)
        try:
            yield
        finally:
            self._groups = ()

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor | PackedMatrix, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What `torch.nn.functional.linear` gives for the same rows of the same request, to the last bit.

        Args:
            x: shape (..., k), any dtype, device and layout; for packed weights bf16 in host memory.
            weight: shape (n, k); or its chunks, which are computed from without the weights' being written to memory.
            bias: shape (n,); not with packed weights.

        Returns:
            LinearShape (..., n).

        Raises:
            CorruptData: a chunk does not hold what the packed matrix says.

        Cost: beside the computation 3 microseconds more than torch; the first call of a shape may run a self-test.
        """
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
        """Computes from chunks; where the kernels do not have torch's bits, recovers the matrix and leaves it to torch.

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
        """Neighbouring groups that torch sums in the same order are computed at once; `x` has shape (rows, k)."""
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
        """The same, but each row as torch computes it when it is the only one.

        So requests that are batched answer as if they were not. Where torch's bits for one row are not known, it
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
        """`rows @ matrix` as torch computes it, each row as if it were alone where several requests share them.

        Args:
            rows: shape (m, k).
            matrix: shape (k, n).
        """
        if self._shared is None or len(rows) == 1:
            return rows @ matrix
        return torch.cat([row @ matrix for row in torch.split(rows, 1)])

    def self_test(self, shapes: Iterable[tuple[int, int, bool]]) -> LinearReport:
        """Finds out the orders of some weight shapes, given as (n, k, whether there is a bias)."""
        worth = [each for each in dict.fromkeys(shapes) if each[0] >= FEWEST_OUTPUTS]
        cases = [(LinearShape(m, n, k), bias) for n, k, bias in worth for m in TESTED_ROWS]
        orders = [self._table.order(shape, bias=bias) for shape, bias in cases]
        known = [order for order in orders if order is not None]
        return LinearReport(
            orders=tuple(dict.fromkeys(str(order) for order in known)),
            matched=len(known),
            unmatched=tuple(shape for (shape, _), order in zip(cases, orders, strict=True) if order is None),
        )

    def order(self, shape: LinearShape, *, bias: bool = False) -> Order | None:
        """The order in which a linear is summed with the bits of torch; None if none is known.

        Where several requests share the rows, it is that of one row.
        """
        m = shape.m if self._shared is None else 1
        return self._order(m, shape.n, shape.k, bias, torch.get_num_threads())

    def same_in_any_company(self, n: int, k: int, *, bias: bool) -> bool:
        """Whether a row of a linear is known to have the same bits alone and among any number of rows."""
        orders = [self._table.order(LinearShape(m, n, k), bias=bias) for m in ROW_COUNTS]
        first = orders[0]
        return first is not None and all(order is not None and order.same_sums(first, k) for order in orders)

    def _order(self, m: int, n: int, k: int, bias: bool, threads: int) -> Order | None:
        """The table's order; kept here under a key that costs less to look up."""
        key = (m, n, k, bias, threads)
        if key in self._orders:
            return self._orders[key]
        order = self._orders[key] = self._table.order(LinearShape(m, n, k), bias=bias)
        return order


class NativeLinear(nn.Linear):
    """A linear module with stock's parameters, under stock's names, that computes by `Linears`."""

    linears: Linears

    @classmethod
    def of(cls, stock: nn.Linear, linears: Linears) -> NativeLinear:
        """Makes a module that shares the parameters of `stock`."""
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module.in_features, module.out_features = stock.in_features, stock.out_features
        module.weight, module.bias = stock.weight, stock.bias
        module.linears = linears
        return module.train(stock.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """Computes the linear; the argument has the name that it has in `torch.nn.Linear`."""
        return self.linears(input, self.weight, self.bias)


def replace_linears(model: nn.Module, linears: Linears) -> list[tuple[int, int, bool]]:
    """Puts a `NativeLinear` in the place of every `torch.nn.Linear` of a model.

    Returns:
        (n, k, whether there is a bias) of each, for `Linears.self_test`.
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
    """Whether the kernels can compute it at all: contiguous bf16 in host memory, nothing empty, no gradients."""
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
