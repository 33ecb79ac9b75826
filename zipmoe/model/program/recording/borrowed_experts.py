"""Provides experts for recording and proof, so that nothing is read and no use of an expert is counted."""

from __future__ import annotations

from collections.abc import Generator, Mapping

import torch

from zipmoe.model.build.build import BuiltModel
from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.linear.compressed import CompressedWeight
from zipmoe.model.linear.matrices import Matrices

TURNS, STEP = 61, 32
"""A matrix begins at one of `TURNS` places of the numbers, `STEP` numbers apart."""


class BorrowedExperts(InProcessProvider):
    """Experts whose matrices are parts of the model's largest dense weight, so that they take no memory."""

    def __init__(self, built: BuiltModel) -> None:
        """Looks for a dense weight with enough numbers; draws numbers if all are too small."""
        self._shapes = [[(tensor.rows, tensor.cols) for tensor in layer.spec.tensors] for layer in built.layers]
        most = max(rows * cols for shapes in self._shapes for rows, cols in shapes) + TURNS * STEP
        parameters = [
            each
            for each in built.model.parameters()
            if each.dtype is torch.bfloat16 and each.is_contiguous() and not isinstance(each, CompressedWeight)
        ]
        largest = max(parameters, key=torch.Tensor.numel, default=None)
        if largest is not None and largest.numel() >= most:
            numbers = largest.detach().view(-1)
        else:
            numbers = torch.randn(most, generator=torch.Generator().manual_seed(1)).mul_(0.1).bfloat16()
        self._numbers = numbers.view(torch.int16).numpy()

    def matrices(self, layer: int, expert: int) -> Matrices:
        """Returns an expert's matrices. They overlap, but each is a tensor with a storage of its own."""
        matrices = []
        for index, (rows, cols) in enumerate(self._shapes[layer]):
            begin = (layer * 7 + expert * 3 + index) % TURNS * STEP
            numbers = torch.from_numpy(self._numbers[begin : begin + rows * cols])
            matrices.append(numbers.view(torch.bfloat16).view(rows, cols))
        return tuple(matrices)

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        """Yields the experts, the highest id first."""
        for expert in sorted(rows, reverse=True):
            yield Arrival(expert, self.matrices(layer, expert))
