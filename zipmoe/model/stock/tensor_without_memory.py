"""Base of tensor classes that have dtype, shape and device, but no memory of their own, by private parts of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch


class TensorWithoutMemory(torch.Tensor):
    """A tensor in host memory for torch's bookkeeping. A subclass computes each operation in `__torch_dispatch__`."""

    __torch_function__: ClassVar[Any] = torch._C._disabled_torch_function_impl

    @classmethod
    def of_shape(cls, shape: Sequence[int], dtype: torch.dtype) -> Self:
        """Makes a contiguous tensor without memory."""
        made: Self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=torch.device("cpu"))
        return made
