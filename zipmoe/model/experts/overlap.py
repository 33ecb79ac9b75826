"""Sets what a MoE layer computes while its routed experts are read: predictions, and the block's shared expert."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from zipmoe.model.experts.next_gate import NextGate

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


@dataclass(frozen=True)
class Overlap:
    """The work of a layer for the time of the reads.

    Attributes:
        gates: gates that predict the experts of this and the following MoE layers, nearest first; empty if the layer's
            own gate is unknown.
        shared: the block's shared expert; None if it is not computed early.
    """

    gates: tuple[NextGate, ...] = ()
    shared: OverlappedShared | None = None

    def compute_shared(self, rows: torch.Tensor | None) -> None:
        """Computes the shared expert for the rows of a single call, shape (rows, hidden); nothing if `rows` is None."""
        if self.shared is not None and rows is not None:
            self.shared.compute(rows)


NOTHING_BESIDE = Overlap()


def overlapped_shared(block: nn.Module) -> OverlappedShared | None:
    """Makes the shared expert of a block one that is computed early, if it comes after the routed experts.

    Its `forward` is replaced. Returns None for any other block, which is left unchanged.
    """
    shared = getattr(block, SHARED_AFTER, None)
    if hasattr(block, SHARED_BEFORE) or not isinstance(shared, nn.Module) or not _takes_rows_alone(shared):
        return None
    overlapped = OverlappedShared(shared.forward)
    shared.forward = overlapped
    return overlapped


def announce_first(block: nn.Module, announce: Callable[[torch.Tensor], None]) -> None:
    """Makes a block whose shared expert comes first announce the predicted routed experts when it begins.

    The gate has not run then. The experts are read while the shared expert is computed. Any other block is left
    unchanged.

    Args:
        block: the MoE block.
        announce: called with the rows of the block, shape (rows, hidden).
    """
    if hasattr(block, SHARED_BEFORE):
        block.register_forward_pre_hook(lambda _, arguments: announce(arguments[0].view(-1, arguments[0].shape[-1])))


def _takes_rows_alone(shared: nn.Module) -> bool:
    return len(inspect.signature(shared.forward).parameters) == 1
