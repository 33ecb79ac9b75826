"""Draws the matrices and inputs of a linear, and brings the matrices into every form that a kernel reads."""

from __future__ import annotations

import math

import torch

from zipmoe.bench.large_pages import large_pages
from zipmoe.codec.registry import create_codec
from zipmoe.kernels.linear import CascadePart, LinearShape
from zipmoe.kernels.memory_form import MemoryForm
from zipmoe.kernels.planes import split_planes
from zipmoe.store.format.layout import e_chunk_rows

WORKING_SET_BYTES = 64 << 20

_ENOUGH_MACS = 10_000_000_000
_MOST_MATRICES = 256
_DRAWN_MATRICES = 8
_E_CHUNKS = 4
_CANCELLING_ROWS = 8
_DEVIATION = 0.02


def matrix_count(shape: LinearShape, working_set_bytes: int = WORKING_SET_BYTES) -> int:
    """Returns the number of bf16 matrices that fill the working set, so that weights come from memory, not from caches.

    The number is smaller if the matrices are small (at most 256) or if a computation with all of them takes long.
    """
    from_memory = math.ceil(working_set_bytes / (2 * shape.n * shape.k))
    return max(1, min(from_memory, _MOST_MATRICES, _ENOUGH_MACS // (shape.m * shape.n * shape.k)))


def draw_inputs(generator: torch.Generator, shape: LinearShape) -> torch.Tensor:
    """Draws inputs ~ N(0, 1): bf16, shape (m, k). Every other row holds its first half twice, so that sums cancel."""
    inputs = torch.randn(shape.m, shape.k, generator=generator)
    half = shape.k // 2
    inputs[::2, half : 2 * half] = inputs[::2, :half]
    return inputs.bfloat16()


class MatrixForms:
    """The matrices of a trial as bf16 and as chunks, in large pages; the first eight are repeated.

    Attributes:
        weights: bf16, shape (n, k) each.
        parts: the same matrices in parts, compressed as in a store.
    """

    def __init__(self, generator: torch.Generator, shape: LinearShape, count: int) -> None:
        """Draws and compresses `count` matrices."""
        drawn = [_draw_weights(generator, shape) for _ in range(min(count, _DRAWN_MATRICES))]
        compressed = [_compressed(each) for each in drawn]
        self._shape = shape
        self.weights = [_copied(drawn[index % len(drawn)]) for index in range(count)]
        self.parts = [_copied_parts(compressed[index % len(drawn)]) for index in range(count)]

    def in_form(self, form: MemoryForm) -> list[memoryview]:
        """Converts each matrix to an in-memory form."""
        n, k = self._shape.n, self._shape.k
        rooms = [large_pages(form.bound(n, k)) for _ in self.parts]
        return [room[: form.from_cascade(part, room, n, k)] for part, room in zip(self.parts, rooms, strict=True)]


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the bytes of a contiguous tensor without a copy."""
    return memoryview(tensor.view(torch.uint8).numpy().data).cast("B")


def _draw_weights(generator: torch.Generator, shape: LinearShape) -> torch.Tensor:
    """Draws weights ~ N(0, 0.02): bf16, shape (n, k). In some rows, the second half is the negated first half."""
    weights = torch.randn(shape.n, shape.k, generator=generator) * _DEVIATION
    half = shape.k // 2
    weights[:_CANCELLING_ROWS, half : 2 * half] = -weights[:_CANCELLING_ROWS, :half]
    return weights.bfloat16()


def _compressed(weights: torch.Tensor) -> list[CascadePart]:
    """Compresses a matrix as in a store, in E-chunks of whole rows."""
    codec = create_codec("cascade")
    rows, cols = weights.shape
    sm, e = bytearray(rows * cols), bytearray(rows * cols)
    split_planes(tensor_bytes(weights), sm, e)
    parts = []
    begin = 0
    for part_rows in e_chunk_rows(rows, _E_CHUNKS):
        end = begin + part_rows * cols
        chunk = codec.compress(memoryview(e)[begin:end], cols)
        parts.append(CascadePart(part_rows, chunk, memoryview(sm)[begin:end]))
        begin = end
    return parts


def _copied(weights: torch.Tensor) -> torch.Tensor:
    copy = torch.frombuffer(large_pages(weights.nbytes), dtype=torch.bfloat16).view(weights.shape)
    return copy.copy_(weights)


def _copied_parts(parts: list[CascadePart]) -> list[CascadePart]:
    room = large_pages(sum(memoryview(each).nbytes for part in parts for each in (part.e_chunk, part.sm)))
    copies, begin = [], 0
    for part in parts:
        places = []
        for source in (memoryview(part.e_chunk), memoryview(part.sm)):
            place = room[begin : begin + source.nbytes]
            place[:] = source
            places.append(place)
            begin += source.nbytes
        copies.append(CascadePart(part.rows, *places))
    return copies
