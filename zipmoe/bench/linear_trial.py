"""Prepares one shape of a linear: the functions to time, on bf16, on compressed weights and on in-memory forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import linear

from zipmoe.bench.large_pages import large_pages
from zipmoe.bench.linear_matrices import WORKING_SET_BYTES, MatrixForms, draw_inputs, matrix_count, tensor_bytes
from zipmoe.errors import InvalidRequest
from zipmoe.kernels.linear import LinearShape, Order, lanes, linear_bf16, linear_cascade
from zipmoe.kernels.memory_form import MemoryForm
from zipmoe.kernels.nibble import NIBBLE
from zipmoe.kernels.tile import TILE
from zipmoe.model.linear.linear_order import OrderTable

Run = Callable[[], object]

BF16, FUSED = "bf16", "fused_cascade"
FORMS = (TILE, NIBBLE)

_MOST_MACS = 1 << 40
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

    convert: Mapping[str, Run]
    """Converts one matrix from its chunks to an in-memory form, by kernel."""

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


def make_trial(shape: LinearShape, threads: int, working_set_bytes: int = WORKING_SET_BYTES) -> LinearTrial:
    """Creates matrices, inputs and torch's results. Torch has to be set to `threads` threads.

    An in-memory form is part of the trial if the machine has it and the form takes the order.

    Raises:
        InvalidRequest: a size is not positive, or the product of the sizes is too large.
    """
    if min(shape.m, shape.n, shape.k) < 1 or shape.m * shape.n * shape.k > _MOST_MACS:
        raise InvalidRequest(f"cannot measure {shape.m} rows with a matrix of {shape.n} x {shape.k}")
    generator = torch.Generator().manual_seed(1)
    count = matrix_count(shape, working_set_bytes)
    forms = MatrixForms(generator, shape, count)
    inputs = draw_inputs(generator, shape)
    order = OrderTable().order(shape, bias=False)
    out = torch.empty(count, shape.m, shape.n, dtype=torch.bfloat16)
    weights, parts = forms.weights, forms.parts
    x, outs = tensor_bytes(inputs), [tensor_bytes(each) for each in out]
    weight_views = [tensor_bytes(each) for each in weights]
    used = order or lanes()

    def bf16() -> None:
        for weight, result in zip(weight_views, outs, strict=True):
            linear_bf16(x, weight, result, shape, used, threads=threads)

    def fused() -> None:
        for part, result in zip(parts, outs, strict=True):
            linear_cascade(x, part, result, shape, used, threads=threads)

    kernels: dict[str, Run] = {BF16: bf16, FUSED: fused}
    stored_bytes = {
        BF16: sum(each.nbytes for each in weights),
        FUSED: sum(memoryview(chunk).nbytes for each in parts for part in each for chunk in (part.e_chunk, part.sm)),
    }
    convert: dict[str, Run] = {}
    for form in FORMS:
        if form.is_supported() and form.takes(used):
            matrices, room = forms.in_form(form), large_pages(form.bound(shape.n, shape.k))
            kernels[form.name] = partial(_multiply, form, x, matrices, outs, shape, used, threads)
            stored_bytes[form.name] = sum(matrix.nbytes for matrix in matrices)
            convert[form.name] = partial(form.from_cascade, parts[0], room, shape.n, shape.k)

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
        kernels=kernels,
        stored_bytes=stored_bytes,
        convert=convert,
        expected=expected,
        out=out,
    )


def _multiply(
    form: MemoryForm,
    x: memoryview,
    matrices: Sequence[memoryview],
    outs: Sequence[memoryview],
    shape: LinearShape,
    order: Order,
    threads: int,
) -> None:
    for matrix, out in zip(matrices, outs, strict=True):
        form.linear(x, matrix, out, shape, order, threads=threads)
