"""Softmax of the scores of several requests, in one native call that never enters OpenMP."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from zipmoe.kernels.program import Code, NativeSegment, Operand, Operation, Type, new_frame
from zipmoe.model.torch_orders import exponentials, softmax_lanes


def softmax_of_contexts(scores: torch.Tensor, heads: int, lengths: Sequence[int]) -> torch.Tensor:
    """Computes the attention weights of single rows, with the bits of `torch.softmax`.

    torch's own softmax of several rows is a parallel region of OpenMP. Its barrier waits for a thread that another
    process keeps from running.

    Args:
        scores: fp32 in host memory, contiguous: for each request, a row of its length for each head.
        heads: query heads.
        lengths: tokens of each request's context.

    Returns:
        fp32, the shape of `scores`.
    """
    lanes = softmax_lanes()
    if lanes is None:
        return softmax_twin(scores, heads, lengths)
    weights = torch.empty_like(scores)
    operations, begin = [], 0
    for length in lengths:
        operation = Operation(code=Code.SOFTMAX)
        operation.a = Operand(type=Type.FP32, offset=scores.data_ptr() + begin * scores.itemsize)
        operation.out = Operand(type=Type.FP32, offset=weights.data_ptr() + begin * scores.itemsize)
        operation.numbers[:3] = [heads, length, lanes]
        operations.append(operation)
        begin += heads * length
    frame = new_frame(1, exponentials())
    NativeSegment(operations).run(ctypes.addressof(frame))
    return weights


def softmax_twin(scores: torch.Tensor, heads: int, lengths: Sequence[int]) -> torch.Tensor:
    """The readable twin of `softmax_of_contexts`, by torch's softmax."""
    parts = torch.split(scores, [heads * length for length in lengths])
    return torch.cat(
        [torch.softmax(part.view(-1, length), -1).view(-1) for part, length in zip(parts, lengths, strict=True)]
    )
