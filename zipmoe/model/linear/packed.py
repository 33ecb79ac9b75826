"""Packed matrices of a routed expert: chunks in memory, from which the kernels compute without recovering weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from zipmoe.kernels.cascade import recover_cascade
from zipmoe.kernels.linear import CascadePart, CascadeWeights, Order, run_cascade
from zipmoe.store.format.layout import ExpertRecord, TensorSpec


@dataclass(frozen=True)
class PackedMatrix:
    """A bf16 matrix as chunks of the codec `cascade`, in the order of its rows."""

    spec: TensorSpec
    parts: tuple[CascadePart, ...]

    @cached_property
    def weights(self) -> CascadeWeights:
        """Addresses of the chunks, for the kernels."""
        return CascadeWeights(self.parts, self.spec.rows, self.spec.cols)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the recovered matrix."""
        return (self.spec.rows, self.spec.cols)

    def takes(self, order: Order) -> bool:
        """Whether the kernels multiply from chunks in an order: in all that the kernels know."""
        return True

    def product(self, rows: torch.Tensor, bias: torch.Tensor | None, order: Order, threads: int) -> torch.Tensor:
        """Computes a linear without bias; arguments and result as for `zipmoe.model.linear.linear_order.compute`."""
        out = rows.new_empty((*rows.shape[:-1], self.shape[0]))
        count = rows.numel() // self.shape[1]
        run_cascade(rows.data_ptr(), self.weights, out.data_ptr(), count, order, threads)
        return out

    def recover(self, scratch: torch.Tensor | None = None) -> torch.Tensor:
        """Recovers the matrix into new memory: bf16, shape (rows, cols).

        Raises:
            CorruptData: a chunk does not hold exactly the exponents of its rows.
        """
        weight = torch.empty(self.shape, dtype=torch.bfloat16)
        first = 0
        for part in self.parts:
            recover_cascade(part.e_chunk, part.sm, as_bytes(weight[first : first + part.rows]))
            first += part.rows
        return weight


def packed_matrices(record: ExpertRecord, e_slot: memoryview, sm_slot: memoryview) -> tuple[PackedMatrix, ...]:
    """Makes the packed matrices of an expert from chunks in memory.

    Args:
        record: offsets of the chunks in the expert's record.
        e_slot: the E-chunks from offset 0, read and checked. The matrices refer to both slots without a copy.
        sm_slot: the SM-chunks from offset 0.
    """
    matrices = []
    for tensor in record.tensors:
        parts = []
        sm = tensor.sm_chunk.offset - record.e_bytes
        for chunk in tensor.e_chunks:
            nbytes = chunk.rows * tensor.spec.cols
            parts.append(CascadePart(chunk.rows, e_slot[chunk.offset : chunk.end], sm_slot[sm : sm + nbytes]))
            sm += nbytes
        matrices.append(PackedMatrix(tensor.spec, tuple(parts)))
    return tuple(matrices)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the memory of a contiguous tensor on the host."""
    array: Any = tensor.view(torch.uint8).numpy()
    return memoryview(array)
