"""Matrices of an expert that is computed before the last matrices have arrived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zipmoe.model.linear.packed import PackedMatrix, Weights


class PartialExpert(Sequence[torch.Tensor | PackedMatrix]):
    """Matrices of an expert of which only the first has arrived; access to any other matrix waits for all of them."""

    def __init__(self, matrices: Weights, wait: Callable[[], None]) -> None:
        self._matrices = matrices
        self._wait: Callable[[], None] | None = wait

    def __getitem__(self, index: Any) -> Any:
        if index != 0 and self._wait is not None:
            wait, self._wait = self._wait, None
            wait()
        return self._matrices[index]

    def __len__(self) -> int:
        return len(self._matrices)
