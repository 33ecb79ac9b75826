"""Computes the shared expert of a MoE block while the reads of the routed experts are under way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zipmoe.model.experts.routed_experts import RoutedExperts

SHARED_BEFORE, SHARED_AFTER = "shared_expert", "shared_experts"
"""Stock's names of a shared expert that comes before the gate, and of one that comes after the routed experts."""


class OverlappedShared:
    """Computes a shared expert early, while the routed experts are read, and keeps the output for the block's call.

    The block calls the shared expert after the routed experts, with the same tensor. That call returns the kept output.
    A call with any other tensor runs stock's forward.
    """

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Takes the place of a module's `forward`."""
        self._forward = forward
        self._kept: tuple[torch.Tensor, torch.Tensor] | None = None
        """The rows and their output. The rows are kept, so that no other tensor gets their address meanwhile."""

    def compute(self, rows: torch.Tensor) -> None:
        """Computes and keeps the output for the rows of the routed experts, shape (rows, hidden)."""
        self._kept = rows, self._forward(rows[None])

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns the output of stock's forward, kept or computed now; shape (1, rows, hidden), as the argument."""
        kept, self._kept = self._kept, None
        if kept is not None and kept[0].data_ptr() == hidden_states.data_ptr() and kept[1].shape == hidden_states.shape:
            return kept[1]
        return self._forward(hidden_states)


def overlap_shared(block: nn.Module, experts: RoutedExperts) -> None:
    """Overlaps the shared expert of a block with the reads of the routed experts.

    Where the shared expert comes first, the gate has not run yet. The block then announces the predicted routed experts
    when it begins, and they are read while the shared expert is computed. Where the shared expert comes last, it is
    computed as soon as the provider has been asked for the routed experts. A block without a shared expert is left
    unchanged.
    """
    if hasattr(block, SHARED_BEFORE):
        block.register_forward_pre_hook(_announce(experts))
    elif isinstance(shared := getattr(block, SHARED_AFTER, None), nn.Module) and _takes_rows_alone(shared):
        beside = OverlappedShared(shared.forward)
        shared.forward = beside
        experts.compute_beside(beside.compute)


def _takes_rows_alone(shared: nn.Module) -> bool:
    return len(inspect.signature(shared.forward).parameters) == 1


def _announce(experts: RoutedExperts) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def begin(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        experts.announce(arguments[0].view(-1, arguments[0].shape[-1]))

    return begin
