"""The matrices of an expert that is computed while the last of them are still under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zipmoe.model.linear.packed import PackedMatrix, Weights


class PartialExpert(Sequence[torch.Tensor | PackedMatrix]):
    """An expert's matrices of which only the first is there; whoever looks at another one waits for it."""

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
