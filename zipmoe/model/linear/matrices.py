"""The forms in which a matrix of an expert can be in memory, and the matrices of an expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch

from zipmoe.model.linear.compressed import CompressedMatrix
from zipmoe.model.linear.packed import PackedMatrix

Matrix: TypeAlias = torch.Tensor | PackedMatrix | CompressedMatrix
"""The weight of a linear: bf16 rows, or a form in memory from which the kernels multiply."""

Matrices: TypeAlias = tuple[torch.Tensor, ...]
"""An expert's bf16 matrices in the order of the manifest."""

Weights: TypeAlias = tuple[Matrix, ...]
"""An expert's matrices in the order of the manifest, in any form."""

AwaitRest: TypeAlias = Callable[[], None] | None
"""Waits for all matrices of an expert but the first, to be called before one of them is used; None if all are there."""


def unpacked(matrices: Iterable[Matrix]) -> Matrices:
    """Recovers an expert's matrices that are not bf16; raises as `PackedMatrix.recover` does."""
    return tuple(each if isinstance(each, torch.Tensor) else each.recover() for each in matrices)
