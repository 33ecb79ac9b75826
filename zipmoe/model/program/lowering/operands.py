"""Turns recorded tensors into operands of native operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from zipmoe.kernels.program import DIMS, Code, Operand, Operation, Type
from zipmoe.model.linear.compressed import CompressedMatrix, CompressedWeight
from zipmoe.model.program.lowering.pass_memory import PassMemory
from zipmoe.model.program.lowering.unary_tables import UnaryTables
from zipmoe.model.program.recording.tape import storage_of

TYPES = {
    torch.bfloat16: Type.BF16,
    torch.float32: Type.FP32,
    torch.int64: Type.INT64,
    torch.bool: Type.BYTE,
    torch.complex64: Type.COMPLEX64,
}


class CannotLower(Exception):
    """An entry has no native operation; the text says why, and torch computes the entry."""


class Operands:
    """Makes the operands of a program.

    Attributes:
        memory: places of the recording's storages.
        tables: tables of functions of one number.
        bases: base of the frame for storages whose address varies from call to call, such as an expert's matrices.
    """

    def __init__(self, memory: PassMemory, tables: UnaryTables, bases: Mapping[int, int] | None = None) -> None:
        self.memory = memory
        self.tables = tables
        self.bases = bases or {}
        self.kept: list[torch.Tensor] = []
        """Constants and weights whose addresses operations have; they have to live as long as the operations."""

    def address(self, tensor: torch.Tensor) -> int:
        """Returns the address of a tensor in a replay.

        Raises:
            CannotLower: the address varies, or the memory holds no plain numbers.
        """
        if isinstance(tensor, CompressedWeight):
            raise CannotLower("a compressed weight outside linears")
        if storage_of(tensor) in self.bases:
            raise CannotLower("the address varies")
        if not self.memory.holds(tensor):
            self.kept.append(tensor)
        return self.memory.view(tensor).data_ptr()

    def of(self, tensor: torch.Tensor, strides: Sequence[int] = (0,) * DIMS) -> Operand:
        """Returns the operand of a tensor.

        Raises:
            CannotLower: no native operation knows the dtype.
        """
        if tensor.dtype not in TYPES:
            raise CannotLower(f"{tensor.dtype} numbers")
        base = self.bases.get(storage_of(tensor), 0)
        offset = tensor.storage_offset() * tensor.element_size() if base else self.address(tensor)
        operand = Operand(base=base, type=TYPES[tensor.dtype], offset=offset)
        operand.strides[:] = list(strides)
        return operand

    def of_matrix(self, matrix: CompressedMatrix) -> Operand:
        """Returns the operand of a compressed matrix; the operation says its form."""
        return Operand(base=0, type=Type.BYTE, offset=self.address(matrix.memory))

    def elementwise(self, code: Code, variant: int, out: torch.Tensor, *inputs: torch.Tensor) -> Operation:
        """Makes an operation on each element of `out`; inputs are broadcast.

        Raises:
            CannotLower: the strides need more dimensions than operations have.
        """
        sizes, strides = _merged(out, inputs)
        operation = Operation(code=code, variant=variant)
        operation.sizes[:] = sizes
        operation.out = self.of(out, strides[0])
        if inputs:
            operation.a = self.of(inputs[0], strides[1])
        if len(inputs) > 1:
            operation.b = self.of(inputs[1], strides[2])
        return operation

    def gather(self, out: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> Operation:
        """Makes the operation that copies the rows `ids` of a table, shape (rows, numbers), to `out`.

        The numbers of a row are adjacent; `ids` and `out` are contiguous.
        """
        operation = Operation(code=Code.GATHER)
        operation.a, operation.b, operation.out = self.of(ids), self.of(table), self.of(out)
        size = table.element_size()
        operation.numbers[:4] = [table.shape[0], table.shape[1] * size, table.stride(0) * size, ids.numel()]
        return operation

    def copy(self, out: torch.Tensor, source: torch.Tensor) -> Operation:
        """Makes the operation that converts and copies a tensor.

        Raises:
            CannotLower: no native operation converts between the dtypes.
        """
        numbers = (torch.bfloat16, torch.float32)
        if out.dtype != source.dtype and not (
            out.dtype in numbers and (source.dtype in numbers or source.dtype is torch.int64)
        ):
            raise CannotLower(f"conversion of {source.dtype} to {out.dtype}")
        return self.elementwise(Code.COPY, 0, out, source)


def _merged(out: torch.Tensor, inputs: Sequence[torch.Tensor]) -> tuple[list[int], list[list[int]]]:
    """Returns sizes and the strides of each tensor, adjacent dimensions merged where all tensors allow it."""
    tensors = [out, *(each.expand(out.shape) for each in inputs)]
    merged: list[tuple[int, list[int]]] = []
    for dim, size in enumerate(out.shape):
        if size == 1:
            continue
        strides = [each.stride(dim) for each in tensors]
        if merged and all(before == size * stride for before, stride in zip(merged[-1][1], strides, strict=True)):
            merged[-1] = merged[-1][0] * size, strides
        else:
            merged.append((size, strides))
    if not merged:
        merged = [(1, [1] * len(tensors))]
    if len(merged) > DIMS:
        raise CannotLower(f"{len(merged)} dimensions")
    missing = DIMS - len(merged)
    sizes = [1] * missing + [size for size, _ in merged]
    return sizes, [[0] * missing + [each[1][index] for each in merged] for index in range(len(tensors))]
