"""Modules that stand in the place of `torch.nn.Linear` and compute by `Linears`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from zipmoe.model.linear.native_linear import Linears


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
