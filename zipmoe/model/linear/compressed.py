"""A dense matrix in a compressed form in memory, and the weight that stands for the matrix in stock's modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_map

from zipmoe.kernels.linear import LinearShape, Order
from zipmoe.kernels.memory_form import MemoryForm
from zipmoe.kernels.nibble import NIBBLE
from zipmoe.kernels.tile import TILE
from zipmoe.model.linear.packed import as_bytes
from zipmoe.model.raw_tensor import written_bytes
from zipmoe.model.stock.tensor_without_memory import TensorWithoutMemory

FORMS = (TILE, NIBBLE)
"""The in-memory forms, the preferred one first. A machine has the forms whose order its torch sums in."""


def named_form(name: str) -> MemoryForm:
    """Returns the in-memory form of a name; raises KeyError for another name."""
    return {form.name: form for form in FORMS}[name]


@dataclass(frozen=True, eq=False)
class CompressedMatrix:
    """A bf16 matrix in an in-memory form, from which the kernels multiply."""

    form: MemoryForm
    shape: tuple[int, int]
    """(rows, cols) of the recovered matrix."""

    memory: torch.Tensor = field(repr=False)
    """uint8, shape (bytes,): the matrix in its form, perhaps followed by other bytes."""

    @classmethod
    def of(cls, weight: torch.Tensor, form: MemoryForm) -> CompressedMatrix:
        """Converts a matrix: bf16 in host memory, shape (n, k), contiguous. Cost: as `MemoryForm.from_bf16`."""
        n, k = weight.shape
        rows = as_bytes(weight.detach())
        memory = written_bytes(form.bound(n, k), lambda room: form.from_bf16(rows, room, n, k))
        return cls(form, (n, k), memory)

    @property
    def nbytes(self) -> int:
        """Bytes that the matrix takes."""
        return self.memory.numel()

    def takes(self, order: Order) -> bool:
        """Whether the kernels multiply from this form in an order."""
        return self.form.takes(order)

    def product(self, rows: torch.Tensor, bias: torch.Tensor | None, order: Order, threads: int) -> torch.Tensor:
        """Computes a linear; arguments and result as for `zipmoe.model.linear.linear_order.compute`."""
        n, k = self.shape
        out = rows.new_empty((*rows.shape[:-1], n))
        self.form.run(
            rows.data_ptr(),
            self.memory.data_ptr(),
            self.nbytes,
            out.data_ptr(),
            LinearShape(rows.numel() // k, n, k),
            order,
            threads,
            bias=0 if bias is None else bias.data_ptr(),
        )
        return out

    def recover(self, scratch: torch.Tensor | None = None) -> torch.Tensor:
        """Recovers the matrix: bf16, shape (rows, cols).

        Args:
            scratch: uint8, contiguous: memory for the result; new memory is allocated if it is None or too small.

        Raises:
            CorruptData: the memory has been overwritten.
        """
        n, k = self.shape
        if scratch is None or scratch.numel() < 2 * n * k:
            scratch = torch.empty(2 * n * k, dtype=torch.uint8)
        weight = scratch[: 2 * n * k].view(torch.bfloat16).view(n, k)
        self.form.to_bf16(as_bytes(self.memory), as_bytes(weight), n, k)
        return weight


class CompressedWeight(TensorWithoutMemory):
    """A bf16 weight whose memory is a `CompressedMatrix`. Torch and stock's code see dtype, shape and device as usual.

    `Linears` computes from the matrix. Any other operation gets the recovered weight, which is correct and slow.
    """

    matrix: CompressedMatrix

    @classmethod
    def of(cls, matrix: CompressedMatrix) -> CompressedWeight:
        """Makes the weight of a matrix."""
        weight = cls.of_shape(matrix.shape, torch.bfloat16)
        weight.matrix = matrix
        return weight

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Recovers the weight for an operation; `detach` gives another weight of the same matrix."""
        if func is torch.ops.aten.detach.default:
            return cls.of(args[0].matrix)
        recovered = tree_map(
            lambda leaf: leaf.matrix.recover() if isinstance(leaf, cls) else leaf, (args, kwargs or {})
        )
        return func(*recovered[0], **recovered[1])

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Names the form and the shape."""
        return f"CompressedWeight({self.matrix.form}, {tuple(self.shape)})"


def held_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor whose memory a weight takes: that of its matrix, or the weight itself."""
    return tensor.matrix.memory if isinstance(tensor, CompressedWeight) else tensor
