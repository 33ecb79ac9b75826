"""Computes the feed-forward network of one routed expert, by stock's own code or by a short cut with equal bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import linear

from zipmoe.errors import UnsupportedModel
from zipmoe.model.linear.native_linear import Linears, NativeLinear
from zipmoe.model.linear.packed import Weights, unpacked
from zipmoe.store.format.layout import ExpertSpec

Tensors = tuple[torch.Tensor, ...]
Group = tuple[torch.Tensor, torch.Tensor]
"""Rows, shape (n, hidden), and their routing weights, shape (n, 1)."""

SELF_TEST_ROWS = (1, 3)
SELF_TEST_BLOCK = 64
"""Rows that are drawn. A matrix repeats them, because drawing hundreds of millions of weights would take seconds."""


class ExpertFfn(Protocol):
    """Computes the output of an expert for the routed rows."""

    @property
    def takes_packed(self) -> bool:
        """Whether `matrices` may be packed; if not, the caller recovers the matrices first."""
        ...

    def __call__(self, rows: torch.Tensor, weights: torch.Tensor, matrices: Weights, biases: Tensors) -> torch.Tensor:
        """Computes the weighted output of one expert.

        Args:
            rows: bf16, shape (n, hidden), the rows in stock's order.
            weights: bf16 or fp32, shape (n, 1), the routing weight of each row.
            matrices: the expert's bf16 matrices in the order of the manifest.
            biases: the expert's dense vectors in the order of `dense_names`; often none.

        Returns:
            Shape (n, hidden), the dtype of `rows`; refers to none of the arguments.
        """

    def together(self, groups: Sequence[Group], matrices: Weights, biases: Tensors) -> list[torch.Tensor]:
        """Computes the expert for several prompts, each with the bits that it has alone.

        Args:
            groups: rows and routing weights of each prompt, as in `__call__`.
            matrices: likewise.
            biases: likewise.
        """


class StockFfn:
    """Runs stock's own experts module with a single expert, so that the bits are exact by construction in every family.

    Packed families: the module itself, with `num_experts` set to 1. Switch: an expert of the module, weighted as stock
    does.
    """

    def __init__(self, experts: nn.Module, spec: ExpertSpec) -> None:
        """Takes over a stock experts module on the meta device and removes the parameters.

        Raises:
            UnsupportedModel: the module has neither form, or its matrices are not the matrices of the spec.
        """
        self._packed = not isinstance(experts, nn.ModuleDict)
        template = experts if self._packed else next(iter(experts.children()))
        _check_matrices(experts, template, spec, packed=self._packed)
        self._matrix_places = [_place(template, tensor.name) for tensor in spec.tensors]
        routed = {tensor.name for tensor in spec.tensors}
        self.dense_names = tuple(name for name, _ in template.named_parameters() if name not in routed)
        """Parameters outside the store's records, such as GPT-OSS's biases; the first dimension is the expert."""
        self._dense_places = [_place(template, name) for name in self.dense_names]
        if self.dense_names and not self._packed:
            raise UnsupportedModel(f"experts of {type(experts).__name__} have parameters beside their matrices")
        for owner, name in self._matrix_places + self._dense_places:
            delattr(owner, name)
        if self._packed:
            template.num_experts = 1  # type: ignore[assignment]
        self.module = template.eval()

    @property
    def takes_packed(self) -> bool:
        """Whether `Linears` computes the linears of a Switch expert; False for packed families."""
        return not self._packed and all(isinstance(owner, NativeLinear) for owner, _ in self._matrix_places)

    def __call__(self, rows: torch.Tensor, weights: torch.Tensor, matrices: Weights, biases: Tensors) -> torch.Tensor:
        """Computes the weighted output of one expert, as `ExpertFfn` says."""
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

    def together(self, groups: Sequence[Group], matrices: Weights, biases: Tensors) -> list[torch.Tensor]:
        """Computes the prompts one after the other."""
        return [self(rows, weights, matrices, biases) for rows, weights in groups]

    def _packed_forward(self, rows: torch.Tensor, weights: torch.Tensor) -> Any:
        index = torch.zeros(rows.shape[0], 1, dtype=torch.long, device=rows.device)
        return self.module(rows, index, weights)


@dataclass(frozen=True)
class DirectFfn:
    """Runs a packed stock module's operations on a single expert, without the search for the rows of each expert."""

    module: Any
    """The stock module, used for its gate function only."""

    transposed: bool
    """Whether the matrices have shape (inputs, outputs), as in GPT-OSS."""

    linear: Callable[[torch.Tensor, Any], torch.Tensor] = linear
    """Multiplies rows and a matrix that is not transposed, with torch's bits."""

    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.matmul
    """Multiplies rows and a transposed matrix, with torch's bits."""

    @property
    def takes_packed(self) -> bool:
        """Whether `Linears` computes the linears and the matrices are not transposed."""
        return isinstance(self.linear, Linears) and not self.transposed

    def __call__(self, rows: torch.Tensor, weights: torch.Tensor, matrices: Weights, biases: Tensors) -> torch.Tensor:
        """Computes the weighted output of one expert, as `ExpertFfn` says."""
        if self.transposed:
            gate_up, down = matrices
            assert isinstance(gate_up, torch.Tensor) and isinstance(down, torch.Tensor)
            hidden = self.module._apply_gate(self.product(rows, gate_up) + biases[0])
            output = self.product(hidden, down) + biases[1]
        else:
            hidden = self.module._apply_gate(self.linear(rows, matrices[0]))
            output = self.linear(hidden, matrices[1])  # looked up last: the matrix may have arrived meanwhile
        weighted: torch.Tensor = output * weights
        return weighted.to(rows.dtype)

    def together(self, groups: Sequence[Group], matrices: Weights, biases: Tensors) -> list[torch.Tensor]:
        """Computes the linears of all prompts at once where the kernels can; prompts share the recovery of a matrix."""
        if len(groups) == 1 or self.transposed or not isinstance(self.linear, Linears):
            return [self(rows, weights, matrices, biases) for rows, weights in groups]
        by_size = sorted(range(len(groups)), key=lambda place: len(groups[place][0]))  # a few orders serve all sizes
        rows = [groups[place][0] for place in by_size]
        counts = [len(each) for each in rows]
        with self.linear.in_groups(counts):
            gate_up = self.linear(torch.cat(rows), matrices[0])
            # torch divides many rows among threads and computes the last few numbers of each share in another way.
            hidden = torch.cat([self.module._apply_gate(each) for each in torch.split(gate_up, counts)])
            outputs = torch.split(self.linear(hidden, matrices[1]), counts)
        weighted = {place: output * groups[place][1] for place, output in zip(by_size, outputs, strict=True)}
        return [weighted[place].to(rows[0].dtype) for place in range(len(groups))]


def choose_ffn(stock: StockFfn, spec: ExpertSpec, device: torch.device, linears: Linears | None = None) -> ExpertFfn:
    """Chooses the short cut if it gives the same bits as stock's code on random experts of the true shape.

    Args:
        stock: the FFN with the bits that are wanted; returned if the bits differ.
        spec: matrices of an expert.
        device: device that computes.
        linears: kernels for the linears of the short cut; None for torch.

    Cost: one expert's memory and a dozen FFN passes; once per shape of a model, not per layer.
    """
    module = stock.module
    if len(spec.tensors) != 2 or not hasattr(module, "_apply_gate"):
        return stock
    transposed = bool(getattr(module, "is_transposed", False))
    direct = DirectFfn(module, transposed)
    if linears is not None:
        direct = DirectFfn(module, transposed, linears, linears.product)
    if len(stock.dense_names) != (2 if direct.transposed else 0):
        return stock
    return direct if _equal_on_random_data(stock, direct, spec, device) else stock


def _equal_on_random_data(stock: StockFfn, direct: DirectFfn, spec: ExpertSpec, device: torch.device) -> bool:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().to(device)

    def draw_matrix(rows: int, cols: int) -> torch.Tensor:
        block = draw(min(rows, SELF_TEST_BLOCK), cols).mul_(cols**-0.5)
        return block.repeat(-(-rows // block.shape[0]), 1)[:rows]

    matrices = tuple(draw_matrix(tensor.rows, tensor.cols) for tensor in spec.tensors)
    inputs, outputs = (0, 1) if direct.transposed else (1, 0)
    shapes = [(tensor.rows, tensor.cols) for tensor in spec.tensors]
    biases = tuple(draw(shape[outputs]) for shape in shapes) if stock.dense_names else ()
    with torch.inference_mode():
        for count in SELF_TEST_ROWS:
            rows = draw(count, shapes[0][inputs])
            for weights in (draw(count, 1), draw(count, 1).float() * 1.0001):
                if not torch.equal(stock(rows, weights, matrices, biases), direct(rows, weights, matrices, biases)):
                    return False
    return True


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Returns the submodule and the attribute of a dotted parameter name."""
    owner, _, attribute = name.rpartition(".")
    return module.get_submodule(owner), attribute


def _check_matrices(experts: nn.Module, template: nn.Module, spec: ExpertSpec, *, packed: bool) -> None:
    if packed and not hasattr(experts, "num_experts"):
        raise UnsupportedModel(f"{type(experts).__name__} is not a module of routed experts")
    shapes = {name: tuple(parameter.shape) for name, parameter in template.named_parameters()}
    for tensor in spec.tensors:
        wanted = (tensor.rows, tensor.cols)
        found = shapes.get(tensor.name)
        if found is None or (found[1:] if packed else found) != wanted:
            raise UnsupportedModel(
                f"{type(experts).__name__} has {tensor.name} of shape {found}, the store's experts have {wanted}",
                next_step="pack the checkpoint again with this version",
            )
