"""What the torch reference makes of all 65 536 patterns; computed with `zipmoe.codec.planes_twin` alone."""

from __future__ import annotations

import torch
from torch import Tensor

from zipmoe.codec import planes_twin

PATTERNS = 1 << 16


def all_weights() -> Tensor:
    """Every bf16 value, in the order of its bits: bfloat16, shape (65536,)."""
    return torch.arange(PATTERNS, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def all_planes() -> tuple[Tensor, Tensor]:
    """Every pair of an SM byte (slow) and an exponent byte (fast): uint8, shape (65536,) each."""
    pattern = torch.arange(PATTERNS, dtype=torch.int32)
    return (pattern >> 8).to(torch.uint8), (pattern & 0xFF).to(torch.uint8)


def split_patterns() -> tuple[Tensor, Tensor]:
    """The planes of `all_weights()`."""
    return planes_twin.split_planes(all_weights())


def merged_patterns() -> Tensor:
    """The weights of `all_planes()`."""
    out = torch.empty(PATTERNS, dtype=torch.bfloat16)
    planes_twin.merge_planes(*all_planes(), out=out)
    return out
