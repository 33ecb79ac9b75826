"""Prepares one shape of a linear: matrices as bf16 and compressed, and the functions to time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from zipmoe.codec.registry import create_codec
from zipmoe.errors import InvalidRequest
from zipmoe.kernels.linear import CascadePart, LinearShape, Order, lanes, linear_bf16, linear_cascade
from zipmoe.kernels.planes import split_planes
from zipmoe.model.linear.linear_order import OrderTable
from zipmoe.store.format.layout import e_chunk_rows

Run = Callable[[], object]

BF16, FUSED = "bf16", "fused_cascade"

_WORKING_SET_BYTES = 64 << 20
_ENOUGH_MACS = 4_000_000_000
_MOST_MACS = 1 << 40
_MOST_MATRICES = 64
_E_CHUNKS = 4
_CANCELLING_ROWS = 8
_DEVIATION = 0.02
_UNWRITTEN = 0x7FC1
"""Bits of the outputs before a computation: a NaN that no kernel produces."""


@dataclass(frozen=True)
class LinearTrial:
    """Functions to time. Each function computes with every matrix once."""

    shape: LinearShape
    order: Order
    is_known: bool
    """Whether `order` is the order of torch. If torch's order is unknown, the kernels are timed in another order."""

    torch_linear: Run
    sgemm: Run
    kernels: Mapping[str, Run]
    stored_bytes: Mapping[str, int]
    """Bytes of all matrices in the form that the kernel reads, by kernel."""

    expected: torch.Tensor
    out: torch.Tensor
    """bf16, shape (matrices, m, n). `expected` holds the results of torch, `out` the results of the kernels."""

    @property
    def matrix_count(self) -> int:
        """Number of matrices that each function computes with."""
        return len(self.out)

    def differing_outputs(self, kernel: str) -> int:
        """Counts the outputs of a kernel that differ in a bit from torch's, over all matrices."""
        out = self.out.view(torch.int16)
        out.fill_(_UNWRITTEN)
        self.kernels[kernel]()
        return int((out != self.expected.view(torch.int16)).sum())


def make_trial(shape: LinearShape, threads: int) -> LinearTrial:
    """Creates matrices, inputs and torch's results. Torch has to be set to `threads` threads.

    Raises:
        InvalidRequest: a size is not positive, or the product of the sizes is too large.
    """
    if min(shape.m, shape.n, shape.k) < 1 or shape.m * shape.n * shape.k > _MOST_MACS:
        raise InvalidRequest(f"cannot measure {shape.m} rows with a matrix of {shape.n} x {shape.k}")
    generator = torch.Generator().manual_seed(1)
    count = matrix_count(shape)
    weights = [_weights(generator, shape) for _ in range(count)]
    inputs = _inputs(generator, shape)
    parts = [_compressed(each) for each in weights]
    order = OrderTable().order(shape, bias=False)
    out = torch.empty(count, shape.m, shape.n, dtype=torch.bfloat16)
    views = [_bytes(each) for each in (inputs, *weights, *out)]
    x, weight_views, out_views = views[0], views[1 : count + 1], views[count + 1 :]
    used = order or lanes()

    def bf16() -> None:
        for weight, result in zip(weight_views, out_views, strict=True):
            linear_bf16(x, weight, result, shape, used, threads=threads)

    def fused() -> None:
        for part, result in zip(parts, out_views, strict=True):
            linear_cascade(x, part, result, shape, used, threads=threads)

    wide, wide_inputs = weights[0].float(), inputs.float()
    with torch.inference_mode():
        expected = torch.stack([linear(inputs, each) for each in weights])
    return LinearTrial(
        shape=shape,
        order=used,
        is_known=order is not None,
        torch_linear=lambda: [linear(inputs, each) for each in weights],
        # One matrix is enough, because the speed of a large product does not depend on memory.
        sgemm=lambda: [linear(wide_inputs, wide) for _ in weights],
        kernels={BF16: bf16, FUSED: fused},
        stored_bytes={
            BF16: sum(each.nbytes for each in weights),
            FUSED: sum(
                memoryview(chunk).nbytes for each in parts for part in each for chunk in (part.e_chunk, part.sm)
            ),
        },
        expected=expected,
        out=out,
    )


def matrix_count(shape: LinearShape) -> int:
    """Returns the number of matrices that fill 64 MiB, so that weights come from memory and not from caches.

    The number is smaller if the matrices are small (at most 64) or if a computation with all of them takes long.
    """
    from_memory = math.ceil(_WORKING_SET_BYTES / (2 * shape.n * shape.k))
    return max(1, min(from_memory, _MOST_MATRICES, _ENOUGH_MACS // (shape.m * shape.n * shape.k)))


def _weights(generator: torch.Generator, shape: LinearShape) -> torch.Tensor:
    """Draws weights ~ N(0, 0.02): bf16, shape (n, k). In some rows, the second half is the negated first half."""
    weights = torch.randn(shape.n, shape.k, generator=generator) * _DEVIATION
    half = shape.k // 2
    weights[:_CANCELLING_ROWS, half : 2 * half] = -weights[:_CANCELLING_ROWS, :half]
    return weights.bfloat16()


def _inputs(generator: torch.Generator, shape: LinearShape) -> torch.Tensor:
    """Draws inputs ~ N(0, 1): bf16, shape (m, k). Every other row holds its first half twice, so that sums cancel."""
    inputs = torch.randn(shape.m, shape.k, generator=generator)
    half = shape.k // 2
    inputs[::2, half : 2 * half] = inputs[::2, :half]
    return inputs.bfloat16()


def _compressed(weights: torch.Tensor) -> list[CascadePart]:
    """Compresses a matrix as in a store, in E-chunks of whole rows."""
    codec = create_codec("cascade")
    rows, cols = weights.shape
    sm, e = bytearray(rows * cols), bytearray(rows * cols)
    split_planes(_bytes(weights), sm, e)
    parts = []
    begin = 0
    for part_rows in e_chunk_rows(rows, _E_CHUNKS):
        end = begin + part_rows * cols
        chunk = codec.compress(memoryview(e)[begin:end], cols)
        parts.append(CascadePart(part_rows, chunk, memoryview(sm)[begin:end]))
        begin = end
    return parts


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the bytes of a contiguous tensor without a copy."""
    return memoryview(tensor.view(torch.uint8).numpy().data).cast("B")
