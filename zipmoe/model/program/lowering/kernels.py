"""Lowers linears and attention to the kernels that compute them in an eager pass as well."""

from __future__ import annotations

import torch

from zipmoe.kernels.attention import scaling_bits
from zipmoe.kernels.program import Code, Operation, WeightForm
from zipmoe.model.attention.row_attention import Method
from zipmoe.model.linear.compressed import CompressedMatrix
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.program.lowering.operands import CannotLower, Operands
from zipmoe.model.program.recording.tape import TapeEntry
from zipmoe.model.torch_orders import softmax_lanes


def lower_linear(entry: TapeEntry, operands: Operands, linears: Linears) -> list[Operation]:
    """Lowers a bf16 linear with a known order. Each row has the bits that it has alone.

    Raises:
        CannotLower: torch computes it.
    """
    x, weight, bias = entry.args
    order = linears.known_order(x.reshape(-1, x.shape[-1])[:1], weight, bias) if x.is_contiguous() else None
    if order is None:
        kind = str(weight.form) if isinstance(weight, CompressedMatrix) else weight.dtype
        raise CannotLower(f"{kind}, {weight.shape[1]} -> {weight.shape[0]}")
    n, k = weight.shape
    operation = Operation(code=Code.LINEAR)
    operation.a, operation.out = operands.of(x), operands.of(entry.outputs[0])
    added = 0 if bias is None else operands.address(bias)
    operation.numbers[:7] = [order.number, x.numel() // k, n, k, order.k_block, order.parts, added]
    if isinstance(weight, CompressedMatrix):
        operation.b = operands.of_matrix(weight)
        operation.numbers[7:9] = [WeightForm[weight.form.name.upper()], weight.nbytes]
    else:
        operation.b = operands.of(weight)
    return [operation]


def lower_attention(
    entry: TapeEntry, operands: Operands, blocks: tuple[torch.Tensor, torch.Tensor], context: int, query: torch.Tensor
) -> list[Operation]:
    """Lowers the writing of keys and values, and the attention of each row. `aim` sets the method afterwards.

    Args:
        entry: the noted attention.
        operands: operands of the program.
        blocks: the pool's keys and values of the layer.
        context: index of the context in the frame.
        query: memory for queries that are not contiguous, bf16.

    Raises:
        CannotLower: torch's softmax differs from the native one.
    """
    rows, key, value = entry.args[2], entry.args[3], entry.args[4]
    lanes = softmax_lanes()
    if lanes is None:
        raise CannotLower("an order of sums that is not known")
    operations = [_write(operands, key, blocks[0]), _write(operands, value, blocks[1])]
    by_row = rows.transpose(1, 2)
    if not by_row.is_contiguous():
        gathered = query[: by_row.numel()].view(by_row.shape)
        operations.append(operands.copy(gathered, by_row))
        by_row = gathered
    heads, slots, numbers = blocks[0].shape
    operation = Operation(code=Code.ATTEND)
    operation.a, operation.b, operation.out = operands.of(by_row), operands.of(blocks[0]), operands.of(entry.outputs[0])
    scaling = scaling_bits(entry.args[5]["scaling"])
    operation.numbers[:] = [
        *(0, heads, rows.shape[1] // heads, numbers, slots, scaling),
        *(0, 0, blocks[1].data_ptr(), blocks[1].shape[2], context, lanes),
    ]
    return [*operations, operation]


def aim(operation: Operation, method: Method) -> None:
    """Sets the summation orders of a lowered attention."""
    operation.numbers[0], operation.numbers[6] = method.scores.number, method.values.number
    operation.numbers[7] = method.values.block


def _write(operands: Operands, rows: torch.Tensor, block: torch.Tensor) -> Operation:
    if rows.shape[0] != 1 or rows.dtype is not block.dtype:
        raise CannotLower("keys or values of several batches")
    operation = Operation(code=Code.KV_WRITE)
    operation.sizes[:3] = [rows.shape[2], block.shape[0], block.shape[2]]
    operation.a = operands.of(rows, (rows.stride(2), rows.stride(1), rows.stride(3), 0))
    operation.out = operands.of(block, (0, block.stride(0), 1, 0))
    return operation
