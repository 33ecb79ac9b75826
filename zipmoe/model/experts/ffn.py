"""Computes the feed-forward network of one routed expert, by stock's own code or by a short cut with equal bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import linear

from zipmoe.errors import PACK_ANEW, UnsupportedModel
from zipmoe.model.linear.linear_module import NativeLinear
from zipmoe.model.linear.matrices import AwaitRest, Weights, unpacked
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.stock.experts_module import expert_children, stacked_matrices
from zipmoe.store.format.layout import ExpertSpec

Tensors = tuple[torch.Tensor, ...]
Group = tuple[torch.Tensor, torch.Tensor]
"""Rows, shape (n, hidden), and their routing weights, shape (n, 1)."""


class SumDtype(Enum):
    """The dtype in which a layer sums the outputs of its experts, and to which each output is rounded before."""

    ROWS = "rows"
    """The dtype of the layer's input, as most families."""

    WEIGHTS = "weights"
    """The dtype of the routing weights (nemotron_h)."""

    FLOAT32 = "float32"
    """fp32 (inkling2)."""

    def of(self, rows: torch.Tensor, weights: torch.Tensor) -> torch.dtype:
        """Returns the dtype for an input and its routing weights."""
        if self is SumDtype.FLOAT32:
            return torch.float32
        return rows.dtype if self is SumDtype.ROWS else weights.dtype


class ExpertFfn(Protocol):
    """Computes the output of an expert for the routed rows."""

    @property
    def takes_packed(self) -> bool:
        """Whether `matrices` may be packed; if not, the caller recovers the matrices first."""
        ...

    @property
    def sum_dtype(self) -> SumDtype:
        """The dtype of the outputs and of their sum."""
        ...

    def __call__(
        self,
        rows: torch.Tensor,
        weights: torch.Tensor,
        matrices: Weights,
        biases: Tensors,
        await_rest: AwaitRest = None,
    ) -> torch.Tensor:
        """Computes the weighted output of one expert.

        Args:
            rows: bf16, shape (n, hidden), the rows in stock's order.
            weights: bf16 or fp32, shape (n, 1), the routing weight of each row.
            matrices: the expert's bf16 matrices in the order of the manifest.
            biases: the expert's dense vectors in the order of `dense_names`; often none.
            await_rest: called before any matrix but the first is used, unless it is None.

        Returns:
            Shape (n, hidden), in the dtype that `sum_dtype` names; refers to none of the arguments.
        """

    def together(
        self, groups: Sequence[Group], matrices: Weights, biases: Tensors, await_rest: AwaitRest = None
    ) -> list[torch.Tensor]:
        """Computes the expert for several prompts, each with the bits that it has alone.

        Args:
            groups: rows and routing weights of each prompt, as in `__call__`.
            matrices: likewise.
            biases: likewise.
            await_rest: likewise.
        """
        ...


class StockFfn:
    """Runs stock's own experts module with a single expert, so that the bits are exact by construction.

    Stacked experts: the module itself, with `num_experts` set to 1. Switch: an expert of the module, weighted as stock
    does. `zipmoe.model.experts.proof` finds out whether outputs of single experts add up to stock's layer.
    """

    sum_dtype = SumDtype.ROWS

    def __init__(self, experts: nn.Module, spec: ExpertSpec) -> None:
        """Takes over a stock experts module on the meta device and removes the parameters.

        Raises:
            UnsupportedModel: its matrices are not the matrices of the spec, or it has parameters of another kind.
        """
        check_matrices(experts, spec)
        self._packed = not isinstance(experts, nn.ModuleDict)
        template = experts if self._packed else next(iter(experts.children()))
        self._matrix_places = [_place(template, tensor.name) for tensor in spec.tensors]
        self.dense_names = dense_names(experts, spec)
        """Parameters outside the store's records, such as GPT-OSS's biases; the first dimension is the expert."""
        self._dense_places = [_place(template, name) for name in self.dense_names]
        for owner, name in self._matrix_places + self._dense_places:
            delattr(owner, name)
        if self._packed:
            template.num_experts = 1  # type: ignore[assignment]
        self.module = template.eval()

    @property
    def takes_packed(self) -> bool:
        """Whether `Linears` computes the linears of a Switch expert; False for packed families."""
        return not self._packed and all(isinstance(owner, NativeLinear) for owner, _ in self._matrix_places)

    def __call__(
        self,
        rows: torch.Tensor,
        weights: torch.Tensor,
        matrices: Weights,
        biases: Tensors,
        await_rest: AwaitRest = None,
    ) -> torch.Tensor:
        """Computes the weighted output of one expert, as `ExpertFfn` says."""
        if await_rest is not None:
            await_rest()
        places = self._matrix_places + self._dense_places
        tensors = (*(unpacked(matrices) if self._packed else matrices), *biases)
        try:
            for (owner, name), tensor in zip(places, tensors, strict=True):
                setattr(owner, name, tensor[None] if isinstance(tensor, torch.Tensor) and self._packed else tensor)
            output = self._packed_forward(rows, weights) if self._packed else self.module(rows) * weights
        finally:
            for owner, name in places:  # the matrices may be gone after this call
                setattr(owner, name, None)
        assert isinstance(output, torch.Tensor)
        return output.to(rows.dtype)

    def together(
        self, groups: Sequence[Group], matrices: Weights, biases: Tensors, await_rest: AwaitRest = None
    ) -> list[torch.Tensor]:
        """Computes the prompts one after the other."""
        return [self(rows, weights, matrices, biases, await_rest) for rows, weights in groups]

    def _packed_forward(self, rows: torch.Tensor, weights: torch.Tensor) -> Any:
        index = torch.zeros(rows.shape[0], 1, dtype=torch.long, device=rows.device)
        return self.module(rows, index, weights)


@dataclass(frozen=True)
class DirectFfn:
    """Runs a stacked stock module's operations on a single expert, without the search for the rows of each expert."""

    activation: Callable[[torch.Tensor], torch.Tensor]
    """Stock's function between the two matrices: the gate function of the module, or its plain activation."""

    transposed: bool
    """Whether the matrices have shape (inputs, outputs), as in GPT-OSS."""

    linear: Callable[[torch.Tensor, Any], torch.Tensor] = linear
    """Multiplies rows and a matrix that is not transposed, with torch's bits."""

    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.matmul
    """Multiplies rows and a transposed matrix, with torch's bits."""

    sum_dtype: SumDtype = SumDtype.ROWS

    @property
    def takes_packed(self) -> bool:
        """Whether `Linears` computes the linears and the matrices are not transposed."""
        return isinstance(self.linear, Linears) and not self.transposed

    def __call__(
        self,
        rows: torch.Tensor,
        weights: torch.Tensor,
        matrices: Weights,
        biases: Tensors,
        await_rest: AwaitRest = None,
    ) -> torch.Tensor:
        """Computes the weighted output of one expert, as `ExpertFfn` says."""
        if self.transposed:
            if await_rest is not None:
                await_rest()
            first, second = matrices
            assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
            inner = self.product(rows, first)
            output = self.product(self.activation(inner + biases[0] if biases else inner), second)
            output = output + biases[1] if biases else output
        else:
            hidden = self.activation(self.linear(rows, matrices[0]))
            if await_rest is not None:
                await_rest()
            output = self.linear(hidden, matrices[1])
        return (output * weights).to(self.sum_dtype.of(rows, weights))

    def together(
        self, groups: Sequence[Group], matrices: Weights, biases: Tensors, await_rest: AwaitRest = None
    ) -> list[torch.Tensor]:
        """Computes the linears of all prompts at once where the kernels can; prompts share the recovery of a matrix."""
        if len(groups) == 1 or self.transposed or not isinstance(self.linear, Linears):
            return [self(rows, weights, matrices, biases, await_rest) for rows, weights in groups]
        by_size = sorted(range(len(groups)), key=lambda place: len(groups[place][0]))  # a few orders serve all sizes
        rows = [groups[place][0] for place in by_size]
        counts = [len(each) for each in rows]
        with self.linear.in_groups(counts):
            first = self.linear(torch.cat(rows), matrices[0])
            # torch divides many rows among threads and computes the last few numbers of each share in another way.
            hidden = torch.cat([self.activation(each) for each in torch.split(first, counts)])
            if await_rest is not None:
                await_rest()
            outputs = torch.split(self.linear(hidden, matrices[1]), counts)
        weighted = {place: output * groups[place][1] for place, output in zip(by_size, outputs, strict=True)}
        return [weighted[place].to(self.sum_dtype.of(*groups[place])) for place in range(len(groups))]


def dense_names(experts: nn.Module, spec: ExpertSpec) -> tuple[str, ...]:
    """Names the parameters of a stock experts module that the records of the store do not hold.

    Raises:
        UnsupportedModel: such a parameter is not one of the experts module itself with the expert in the first
            dimension, so that no expert has a share of its own.
    """
    template = experts if not isinstance(experts, nn.ModuleDict) else next(iter(experts.children()))
    routed = {tensor.name: tensor for tensor in spec.tensors}
    count = next((len(each) for name, each in template.named_parameters() if name in routed), 0)
    names = tuple(name for name, _ in template.named_parameters() if name not in routed)
    for name in names:
        if template is not experts or "." in name or template.get_parameter(name).shape[0] != count:
            raise UnsupportedModel(f"{type(experts).__name__} has the parameter {name} beside its experts' matrices")
    return names


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Returns the submodule and the attribute of a dotted parameter name."""
    owner, _, attribute = name.rpartition(".")
    return module.get_submodule(owner), attribute


def check_matrices(experts: nn.Module, spec: ExpertSpec) -> None:
    """Refuses an experts module whose matrices are not those of the store.

    Raises:
        UnsupportedModel: names the first matrix that differs.
    """
    if children := expert_children(experts):
        found = {name: tuple(each.shape) for name, each in next(iter(children.values())).named_parameters()}
    else:
        found = {each.parameter: (each.rows, each.cols) for each in stacked_matrices(experts)}
    for tensor in spec.tensors:
        wanted = (tensor.rows, tensor.cols)
        if found.get(tensor.name) != wanted:
            raise UnsupportedModel(
                f"{type(experts).__name__} has {tensor.name} of shape {found.get(tensor.name)}, "
                f"the store's experts have {wanted}",
                next_step=PACK_ANEW,
            )
