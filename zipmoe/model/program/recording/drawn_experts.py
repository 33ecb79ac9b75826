"""Provides drawn experts for recording and proof, so that nothing is read and no use of an expert is counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from zipmoe.model.experts.provider import InProcessProvider
from zipmoe.model.linear.packed import Matrices
from zipmoe.store.format.entries import LayerEntry

TURNS, STEP = 61, 32
"""An expert's matrices begin at one of `TURNS` places of the drawn numbers, `STEP` numbers apart."""

MOST_DRAWN = 1 << 20
"""Numbers that are drawn; a larger expert repeats them."""


class DrawnExperts(InProcessProvider):
    """Experts that share one block of drawn numbers, about as large as one expert."""

    def __init__(self, layers: Sequence[LayerEntry]) -> None:
        """Draws the numbers for the experts of a model's MoE layers."""
        self._shapes = [[(tensor.rows, tensor.cols) for tensor in layer.spec.tensors] for layer in layers]
        most = max(sum(rows * cols for rows, cols in shapes) for shapes in self._shapes)
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randn(min(most, MOST_DRAWN) + TURNS * STEP, generator=generator)
        width = max(cols for shapes in self._shapes for _, cols in shapes)
        numbers = drawn.mul_(1.6 / width**0.5).bfloat16()
        self._numbers = numbers.repeat(-(-(most + TURNS * STEP) // len(numbers)))

    def matrices(self, layer: int, expert: int) -> Matrices:
        """Returns an expert's matrices."""
        matrices, begin = [], (layer * 7 + expert) % TURNS * STEP
        for rows, cols in self._shapes[layer]:
            matrices.append(self._numbers[begin : begin + rows * cols].view(rows, cols))
            begin += rows * cols
        return tuple(matrices)

    def experts(self, layer: int, rows: Mapping[int, int]) -> Iterator[tuple[int, Matrices]]:
        """Yields the experts, the highest id first."""
        for expert in sorted(rows, reverse=True):
            yield expert, self.matrices(layer, expert)
