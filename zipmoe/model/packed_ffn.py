"""One routed expert straight from its chunks, as the chunk arena holds them: no weight is written to memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear as stock_linear

from zipmoe.errors import UnsupportedModel
from zipmoe.kernels.cascade import recover_cascade
from zipmoe.kernels.linear import CascadePart, Shape, linear_cascade
from zipmoe.model.ffn import DirectFfn
from zipmoe.model.linear import Linears
from zipmoe.store.layout import ExpertRecord, TensorSpec


@dataclass(frozen=True)
class PackedMatrix:
    """A bf16 matrix as chunks of the codec `cascade`, in the order of its rows."""

    spec: TensorSpec
    parts: tuple[CascadePart, ...]


def packed_matrices(record: ExpertRecord, slot: memoryview) -> tuple[PackedMatrix, ...]:
    """The matrices of an expert whose chunks are in memory.

    Args:
        record: where the chunks stand.
        slot: holds the record at offset 0, all parts read and checked. Referred to, not copied.
    """
    matrices = []
    for tensor in record.tensors:
        parts = []
        sm = tensor.sm_chunk.offset
        for chunk in tensor.e_chunks:
            nbytes = chunk.rows * tensor.spec.cols
            parts.append(CascadePart(chunk.rows, slot[chunk.offset : chunk.end], slot[sm : sm + nbytes]))
            sm += nbytes
        matrices.append(PackedMatrix(tensor.spec, tuple(parts)))
    return tuple(matrices)


def linear_packed(linears: Linears, x: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
    """What `Linears` gives for the recovered matrix, to the last bit.

    Where the kernels do not have torch's bits, the matrix is recovered and torch computes.

    Args:
        linears: knows the orders.
        x: bf16 in host memory, shape (m, cols), contiguous, m at least 1.
        matrix: the weights.

    Returns:
        bf16, shape (m, rows).

    Raises:
        CorruptData: a chunk does not hold what the matrix says.
    """
    shape = Shape(x.shape[0], matrix.spec.rows, matrix.spec.cols)
    order = linears.order(shape)
    if order is None:
        weight = torch.empty(shape.n, shape.k, dtype=torch.bfloat16)
        first = 0
        for part in matrix.parts:
            recover_cascade(part.e_chunk, part.sm, _bytes(weight[first : first + part.rows]))
            first += part.rows
        return stock_linear(x, weight)
    out = x.new_empty(shape.m, shape.n)
    linear_cascade(_bytes(x), matrix.parts, _bytes(out), shape, order, threads=torch.get_num_threads())
    return out


@dataclass(frozen=True)
class PackedFfn:
    """`DirectFfn` on packed experts, with the same bits."""

    module: Any
    """The stock module, for its gate function alone."""

    linears: Linears

    @classmethod
    def of(cls, direct: DirectFfn, linears: Linears) -> PackedFfn:
        """Makes the packed twin of a short cut.

        Raises:
            UnsupportedModel: its matrices are (inputs, outputs): no order of theirs is known.
        """
        if direct.transposed:
            raise UnsupportedModel(f"experts of {type(direct.module).__name__} are transposed")
        return cls(direct.module, linears)

    def __call__(self, rows: torch.Tensor, weights: torch.Tensor, matrices: tuple[PackedMatrix, ...]) -> torch.Tensor:
        """Computes the weighted output of one expert.

        Args:
            rows: bf16 in host memory, shape (n, hidden), contiguous, n at least 1.
            weights: bf16 or fp32, shape (n, 1), the routing weight of each row.
            matrices: gate_up and down, from `packed_matrices`.

        Returns:
            Shape (n, hidden), bf16.

        Raises:
            CorruptData: a chunk does not hold what the matrix says.
        """
        gate_up, down = matrices
        hidden = self.module._apply_gate(linear_packed(self.linears, rows, gate_up))
        weighted: torch.Tensor = linear_packed(self.linears, hidden.contiguous(), down) * weights
        return weighted.to(rows.dtype)


def _bytes(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.view(torch.uint8).numpy()
    return memoryview(array)
