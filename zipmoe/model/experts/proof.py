"""Finds out by computing whether a layer's experts can be computed one by one, with the bits of stock's own module.

Two comparisons decide. Stock's module with a few random experts runs beside `RoutedExperts`, on rows that share
experts: the comparison shows the way the module is called, the order and dtype of the sum, and steps that only some
families have. Its matrices are small, since none of this depends on their size. Then a short cut with the kernels runs
beside stock's code on one random expert of the true shape.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property

import torch
from torch import nn

from zipmoe.errors import UnsupportedModel
from zipmoe.model.experts.device import HostPlacement
from zipmoe.model.experts.ffn import DirectFfn, ExpertFfn, StockFfn, SumDtype, dense_names
from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.experts.supply import ExpertSupply
from zipmoe.model.linear.matrices import Matrices
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.stock.experts_module import activation_of, expert_children, flags_of, whole_layer_reason
from zipmoe.store.format.layout import ExpertSpec, TensorSpec

EXPERTS = 4
"""Random experts of the first comparison."""

LEAST_WIDTH = 16
"""Fewest rows and columns of a small matrix, where the true sizes have a common divisor."""

ROWS = (1, 3)
BLOCK = 64
"""Rows that are drawn. A matrix repeats them, because drawing hundreds of millions of weights would take seconds."""


def prove_ffn(experts: nn.Module, spec: ExpertSpec, device: torch.device, linears: Linears | None = None) -> ExpertFfn:
    """Chooses the fastest way to compute an expert of a stock module with the module's bits.

    Args:
        experts: stock's experts module on the meta device; not changed.
        spec: matrices of an expert.
        device: device that computes.
        linears: kernels for the linears of the short cut; None for torch.

    Returns:
        A short cut, or else stock's code for a single expert.

    Raises:
        UnsupportedModel: no way to compute experts one by one gives stock's bits; the message says the difference.

    Cost: one expert's memory and a dozen FFN passes; once per kind of module, not per layer.
    """
    if reason := whole_layer_reason(experts):
        raise UnsupportedModel(reason)
    reference = _Reference(experts, spec)
    if (direct := _direct(experts, spec)) is not None:
        for sum_dtype in SumDtype:
            candidate = replace(direct, sum_dtype=sum_dtype)
            if not reference.differs(candidate):
                if linears is None:
                    return candidate
                fast = replace(candidate, linear=linears, product=linears.product)
                return fast if _alike(candidate, fast, spec, device) else candidate
    stock = StockFfn(deepcopy(experts), spec)
    if difference := reference.differs(stock):
        raise UnsupportedModel(f"{type(experts).__name__} is more than a sum of its experts: {difference}")
    return stock


def kind_of(experts: nn.Module, spec: ExpertSpec) -> Hashable:
    """Returns the part of a stock module that decides how its experts are computed; equal for most layers of a model.

    Layers of one class may differ in numbers such as a limit (step3p7), which are attributes of the module.
    """
    plain = {name: each for name, each in vars(experts).items() if isinstance(each, int | float | str | None)}
    plain.pop("layer_idx", None)
    return type(experts), spec, repr(experts), tuple(sorted(plain.items(), key=str))


def _direct(experts: nn.Module, spec: ExpertSpec) -> DirectFfn | None:
    """Returns the short cut that stock's flags describe; None for a module that has more to it."""
    flags = flags_of(experts)
    function = activation_of(experts)
    biases = len(dense_names(experts, spec))
    if isinstance(experts, nn.ModuleDict) or len(spec.tensors) != 2 or function is None:
        return None
    if biases != (2 if flags.has_bias else 0) or (flags.has_bias and not flags.is_transposed):
        return None
    return DirectFfn(function, flags.is_transposed)


class _Reference:
    """Stock's module with a few small random experts, and the inputs and outputs of some calls."""

    def __init__(self, experts: nn.Module, spec: ExpertSpec) -> None:
        divisor = _divisor(spec)
        tensors = [TensorSpec(each.name, each.rows // divisor, each.cols // divisor) for each in spec.tensors]
        self.spec = ExpertSpec(tuple(tensors))
        self._experts = experts
        self._draw = torch.Generator().manual_seed(0)
        self.matrices = [tuple(self._matrix(tensor) for tensor in self.spec.tensors) for _ in range(EXPERTS)]
        self.dense = {
            name: self._drawn(EXPERTS, experts.get_parameter(name).shape[1] // divisor)
            for name in dense_names(experts, spec)
        }

    def differs(self, ffn: ExpertFfn) -> str | None:
        """Says in which way our layer with this FFN differs from stock's; None if every bit is equal."""
        small = ffn
        if isinstance(ffn, StockFfn):
            small = StockFfn(self._small_module(), self.spec)
        dense = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in self.dense.items()}
        ours = RoutedExperts(0, small, ExpertSupply(_Given(self.matrices), HostPlacement()), dense)
        with torch.inference_mode():
            for rows, selected, weights in self._calls():
                try:
                    wanted = self._stock(rows, selected, weights)
                except Exception as error:  # a module of another interface may raise anything
                    return f"a call with rows, ids and weights fails ({type(error).__name__}: {str(error)[:120]})"
                found = ours(rows, selected, weights)
                if not isinstance(wanted, torch.Tensor) or wanted.shape != found.shape or wanted.dtype != found.dtype:
                    return "its output has another shape or dtype"
                if not torch.equal(wanted.view(torch.uint8), found.view(torch.uint8)):
                    return f"with {len(rows)} rows and {weights.dtype} weights the sum has other bits"
        return None

    def _calls(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yields rows, the experts chosen for each row and their weights; experts 0 to 3, most of them shared."""
        inputs = self.spec.tensors[0].rows if flags_of(self._experts).is_transposed else self.spec.tensors[0].cols
        for count in (1, 2, 7):
            rows = self._drawn(count, inputs)
            for dtype in (torch.bfloat16, torch.float32):
                if isinstance(self._experts, nn.ModuleDict):  # Switch: one expert a row, one-hot
                    chosen = torch.randint(EXPERTS, (count, 1), generator=self._draw)
                    selected = torch.nn.functional.one_hot(chosen, EXPERTS)
                else:
                    selected = torch.stack([torch.randperm(EXPERTS, generator=self._draw)[:3] for _ in range(count)])
                    chosen = selected
                weights = torch.rand(*chosen.shape, generator=self._draw).add_(0.1).to(dtype)
                yield rows, selected, weights

    @cached_property
    def _stock(self) -> nn.Module:
        """Stock's module with all random experts."""
        module = self._small_module()
        children = list(expert_children(module).values()) or [module]
        for tensor_index, tensor in enumerate(self.spec.tensors):
            owner_path, _, name = tensor.name.rpartition(".")
            each = [expert[tensor_index] for expert in self.matrices]
            for index, child in enumerate(children):
                owner = child.get_submodule(owner_path)
                value = each[index] if isinstance(module, nn.ModuleDict) else torch.stack(each)
                setattr(owner, name, nn.Parameter(value, requires_grad=False))
        for name, bias in self.dense.items():
            setattr(module, name, nn.Parameter(bias, requires_grad=False))
        return module.eval()

    def _small_module(self) -> nn.Module:
        """Copies stock's module with `EXPERTS` experts of small shapes on the meta device."""
        module = deepcopy(self._experts)
        for name in list(expert_children(module))[EXPERTS:]:
            del module[name]  # type: ignore[operator]
        for child in expert_children(module).values() or [module]:
            for tensor in self.spec.tensors:
                owner_path, _, name = tensor.name.rpartition(".")
                stack = () if isinstance(module, nn.ModuleDict) else (EXPERTS,)
                shape = (*stack, tensor.rows, tensor.cols)
                empty = torch.empty(shape, dtype=torch.bfloat16, device="meta")
                setattr(child.get_submodule(owner_path), name, nn.Parameter(empty, requires_grad=False))
        for name, bias in self.dense.items():
            setattr(module, name, nn.Parameter(bias.to("meta"), requires_grad=False))
        if hasattr(module, "num_experts"):
            module.num_experts = EXPERTS  # type: ignore[assignment]
        return module

    def _drawn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._draw).bfloat16()

    def _matrix(self, tensor: TensorSpec) -> torch.Tensor:
        return self._drawn(tensor.rows, tensor.cols).mul_(tensor.cols**-0.5)


class _Given(InProcessProvider):
    """Provides experts in descending order, which shows that the order of arrival has no effect."""

    def __init__(self, matrices: Sequence[Matrices]) -> None:
        self._matrices = matrices

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        for expert in sorted(rows, reverse=True):
            yield Arrival(expert, self._matrices[expert])


def _divisor(spec: ExpertSpec) -> int:
    """Returns the largest divisor of all sizes that leaves `LEAST_WIDTH`, so that relations between the sizes stay."""
    sizes = [size for tensor in spec.tensors for size in (tensor.rows, tensor.cols)]
    common, most = math.gcd(*sizes), max(1, min(sizes) // LEAST_WIDTH)
    return max(divisor for divisor in range(1, min(common, most) + 1) if common % divisor == 0)


def _alike(a: ExpertFfn, b: ExpertFfn, spec: ExpertSpec, device: torch.device) -> bool:
    """Compares two FFNs on a random expert of the true shape."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().to(device)

    def draw_matrix(rows: int, cols: int) -> torch.Tensor:
        block = draw(min(rows, BLOCK), cols).mul_(cols**-0.5)
        return block.repeat(-(-rows // block.shape[0]), 1)[:rows]

    matrices = tuple(draw_matrix(tensor.rows, tensor.cols) for tensor in spec.tensors)
    transposed = isinstance(a, DirectFfn) and a.transposed
    inputs, outputs = (0, 1) if transposed else (1, 0)
    shapes = [(tensor.rows, tensor.cols) for tensor in spec.tensors]
    biases = tuple(draw(shape[outputs]) for shape in shapes) if transposed else ()
    with torch.inference_mode():
        for count in ROWS:
            rows = draw(count, shapes[0][inputs])
            for weights in (draw(count, 1), draw(count, 1).float() * 1.0001):
                if not torch.equal(a(rows, weights, matrices, biases), b(rows, weights, matrices, biases)):
                    return False
    return True
