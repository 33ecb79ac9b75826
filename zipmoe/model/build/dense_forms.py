"""Compresses the matrices of linears while a model is loaded, one after the other, where that leaves torch's bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from zipmoe.kernels.memory_form import MemoryForm
from zipmoe.model.linear.compressed import FORMS, CompressedMatrix, CompressedWeight
from zipmoe.model.linear.linear_module import NativeLinear
from zipmoe.model.linear.linear_order import FEWEST_OUTPUTS, ROW_COUNTS
from zipmoe.model.linear.native_linear import Linears

MOST_SCRATCH_BYTES = 64 << 20
"""The largest matrix that is recovered where the kernels lack torch's bits for a number of rows. A larger matrix with
such a number stays bf16."""


BF16 = "bf16"
SHARED = "shared with a module that is no linear"


def form_of_machine(linears: Linears, n: int, k: int, *, bias: bool = False) -> MemoryForm | None:
    """Returns the in-memory form from which the kernels have torch's bits for one row of a linear; None without one."""
    for form in FORMS:
        if form.is_supported() and 1 in linears.rows_in_form(form, n, k, bias=bias):
            return form
    return None


@dataclass
class DenseForms:
    """What the matrices of a model's linears were turned into.

    Attributes:
        counts: number of matrices by name of their form; `bf16` for those that stay as they are.
        nbytes: their bytes in this form, likewise.
        bf16_bytes: the bytes of the compressed ones as bf16.
        left: why matrices stay bf16, with their number.
        scratch_bytes: memory for a matrix that is recovered for some numbers of rows.
    """

    counts: Counter[str] = field(default_factory=Counter)
    nbytes: Counter[str] = field(default_factory=Counter)
    bf16_bytes: int = 0
    left: Counter[str] = field(default_factory=Counter)
    scratch_bytes: int = 0

    @property
    def compressed_count(self) -> int:
        """Number of compressed matrices."""
        return sum(count for form, count in self.counts.items() if form != BF16)

    @property
    def saved_bytes(self) -> int:
        """Bytes that the compressed matrices and the scratch take less than bf16."""
        kept = sum(nbytes for form, nbytes in self.nbytes.items() if form != BF16)
        return self.bf16_bytes - kept - self.scratch_bytes

    @property
    def why_left(self) -> str:
        """Says in one line why matrices stay bf16; empty if none does."""
        return "; ".join(f"{count} x {reason}" for reason, count in self.left.items())


class DenseCompression:
    """Decides on a model's matrices and compresses them. Thread: one at a time."""

    def __init__(self, model: nn.Module, linears: Linears) -> None:
        """Looks for the model's linears.

        Args:
            model: the model, with `NativeLinear` modules in place of stock's linears.
            linears: knows the orders in which torch sums.
        """
        self.report = DenseForms()
        self._linears = linears
        self._left: dict[str, str] = {}
        self.modules = {
            f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, NativeLinear)
        }

    def may_compress(self, name: str) -> bool:
        """Whether a name in the state dict is that of a linear's matrix."""
        return name in self.modules

    def kept(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the matrix of a linear as it is to be kept: compressed, or the tensor itself.

        Args:
            name: name in the state dict, for which `may_compress` is true.
            tensor: the weight in the model's dtype, in host memory. The caller gives it up.
        """
        found = self._compressed(self.modules[name], tensor)
        if isinstance(found, str):
            self._left[name] = found
            return tensor
        return CompressedWeight.of(found)

    def finish(self, model: nn.Module) -> None:
        """Recovers the weights that other modules than linears use too, allocates the scratch, and makes the report."""
        for shared in _used_elsewhere(model):
            recovered = nn.Parameter(shared.matrix.recover(), requires_grad=shared.requires_grad)
            for module in model.modules():
                for name, parameter in list(module.named_parameters(recurse=False)):
                    if id(parameter) == id(shared):
                        setattr(module, name, recovered)
        self.report = self.counted(
            {
                id(module.weight): module.weight.matrix
                for module in self.modules.values()
                if isinstance(module.weight, CompressedWeight)
            }
        )
        self._linears.keep_scratch(self.report.scratch_bytes)

    def counted(self, compressed: Mapping[int, CompressedMatrix]) -> DenseForms:
        """Makes the report.

        Args:
            compressed: the compressed matrix of each weight that has one, by the identity of the module's parameter.
        """
        report = DenseForms()
        for key, (name, module) in {id(each.weight): (name, each) for name, each in self.modules.items()}.items():
            plain_bytes = 2 * module.out_features * module.in_features
            matrix = compressed.get(key)
            if matrix is None:
                report.counts[BF16] += 1
                report.nbytes[BF16] += module.weight.nbytes
                report.left[self._left.get(name, SHARED)] += 1
                continue
            report.counts[matrix.form.name] += 1
            report.nbytes[matrix.form.name] += matrix.nbytes
            report.bf16_bytes += plain_bytes
            if not self._known_everywhere(module, matrix.form):
                report.scratch_bytes = max(report.scratch_bytes, plain_bytes)
        return report

    @torch.inference_mode()
    def _same_bits(self, matrix: CompressedMatrix, tensor: torch.Tensor) -> bool:
        """Compares a product from the compressed matrix with that from its bf16 rows, bit for bit."""
        row = torch.randn(1, matrix.shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
        wanted, found = (self._linears(row, each).view(torch.int16) for each in (tensor, matrix))
        return torch.equal(found, wanted)

    def _known_everywhere(self, module: NativeLinear, form: MemoryForm) -> bool:
        n, k, bias = module.out_features, module.in_features, module.bias is not None
        return len(self._linears.rows_in_form(form, n, k, bias=bias)) == len(ROW_COUNTS)

    def _compressed(self, module: NativeLinear, tensor: torch.Tensor) -> CompressedMatrix | str:
        """Compresses a matrix; returns the reason if it stays as it is."""
        if tensor.dtype is not torch.bfloat16 or not tensor.is_cpu or not tensor.is_contiguous():
            return f"{str(tensor.dtype).removeprefix('torch.')} numbers"
        n, k = tensor.shape
        bias = module.bias is not None
        if n < FEWEST_OUTPUTS:
            return f"fewer than {FEWEST_OUTPUTS} outputs"
        form = form_of_machine(self._linears, n, k, bias=bias)
        if form is None:
            return "no form has torch's bits for one row"
        if not self._known_everywhere(module, form) and tensor.nbytes > MOST_SCRATCH_BYTES:
            return f"more than {MOST_SCRATCH_BYTES >> 20} MiB would be recovered for some numbers of rows"
        matrix = CompressedMatrix.of(tensor, form)
        if matrix.nbytes >= tensor.nbytes:
            return "no smaller when compressed"
        if not self._same_bits(matrix, tensor):
            return f"the {form} has other bits than bf16 rows"
        return matrix


def compressed_beside(
    model: nn.Module, linears: Linears
) -> tuple[list[tuple[torch.Tensor, CompressedMatrix]], DenseForms]:
    """Compresses the matrices of a model with bf16 weights beside them, for measurements.

    Returns:
        The bf16 weight and the compressed matrix of each that loading would compress; and the report of loading.
    """
    compression = DenseCompression(model, linears)
    shared = {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, NativeLinear)
        for parameter in module.parameters(recurse=False)
    }
    pairs: dict[int, tuple[torch.Tensor, CompressedMatrix]] = {}
    for name, module in compression.modules.items():
        if id(module.weight) in shared or id(module.weight) in pairs:
            continue
        weight = module.weight.detach()
        kept = compression.kept(name, weight)
        if isinstance(kept, CompressedWeight):
            pairs[id(module.weight)] = weight, kept.matrix
    return list(pairs.values()), compression.counted({key: matrix for key, (_, matrix) in pairs.items()})


def _used_elsewhere(model: nn.Module) -> list[CompressedWeight]:
    """Finds compressed weights of modules that are no `NativeLinear`, such as tied embeddings."""
    found: Mapping[int, CompressedWeight] = {
        id(parameter): parameter
        for module in model.modules()
        if not isinstance(module, NativeLinear)
        for parameter in _own_compressed(module)
    }
    return list(found.values())


def _own_compressed(module: nn.Module) -> Iterator[CompressedWeight]:
    for parameter in module.parameters(recurse=False):
        if isinstance(parameter, CompressedWeight):
            yield parameter
