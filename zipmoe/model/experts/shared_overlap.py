"""What a MoE block computes beside its routed experts, put where their reads are under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zipmoe.model.experts.routed_experts import RoutedExperts

SHARED_BEFORE, SHARED_AFTER = "shared_expert", "shared_experts"
"""What stock calls the shared expert where it comes before the gate, and where it comes after the routed experts."""


class OverlappedShared:
    """A shared expert that the block asks for after the routed ones: it is computed while they are read, and kept.

    The block computes it from the very tensor that its routed experts see, so the call that comes later is answered
    with what is kept; any other call is stock's.
    """

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Stands for a module's `forward`."""
        self._forward = forward
        self._kept: tuple[int, torch.Tensor] | None = None

    def compute(self, rows: torch.Tensor) -> None:
        """Computes it for the rows that the routed experts see, shape (rows, hidden)."""
        self._kept = rows.data_ptr(), self._forward(rows[None])

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What stock computes; shape (1, rows, hidden), as the argument."""
        kept, self._kept = self._kept, None
        if kept is not None and kept[0] == hidden_states.data_ptr() and kept[1].shape == hidden_states.shape:
            return kept[1]
        return self._forward(hidden_states)


def overlap_shared(block: nn.Module, experts: RoutedExperts) -> None:
    """Lets a block's shared expert be computed while its routed ones are read.

    Where it comes first, the routed experts are told as soon as the block begins, and read meanwhile; where it comes
    last, it is computed as soon as they have been asked for. Blocks without one are left as they are.
    """
    if hasattr(block, SHARED_BEFORE):
        block.register_forward_pre_hook(_announce(experts))
    elif isinstance(shared := getattr(block, SHARED_AFTER, None), nn.Module):
        beside = OverlappedShared(shared.forward)
        shared.forward = beside
        experts.compute_beside(beside.compute)


def _announce(experts: RoutedExperts) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def begin(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        experts.announce(arguments[0].view(-1, arguments[0].shape[-1]))

    return begin
