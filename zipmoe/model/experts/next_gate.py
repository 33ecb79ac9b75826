"""What a layer's gate is about to choose, and a guess of what the next layers' will, made before they are called."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import linear

from zipmoe.model.linear.native_linear import Linears

#: Of a long prompt's rows so many tell enough; the last ones are nearest to what comes.
MOST_ROWS = 64


class NextGate:
    """Applies the gate of a MoE layer to the state that its own gate, or that of an earlier layer, sees.

    Neighbouring layers see similar states, since each only adds to the residual stream, so most guesses come true. Only
    the gate's matrix is applied, not its normalisation or grouping: an order of likelihood is all that is wanted.
    """

    def __init__(self, weight: torch.Tensor, chosen_count: int, linears: Linears | None) -> None:
        """Takes the gate's matrix, shape (experts, hidden), and how many experts it chooses for a token."""
        self._weight = weight
        self._linear: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = linears or linear
        self._chosen_count = min(chosen_count, weight.shape[0])

    def __call__(self, hidden_states: torch.Tensor) -> list[int]:
        """Guesses the experts that these rows will use there, the likeliest first.

        Args:
            hidden_states: shape (rows, hidden), what the earlier layer's gate sees.

        Cost: a product of (rows, hidden) and (hidden, experts).
        """
        rows = hidden_states[-MOST_ROWS:]
        scores = self._linear(rows.to(self._weight.dtype), self._weight)
        chosen = scores.topk(self._chosen_count, dim=-1)
        if rows.shape[0] == 1:
            guess: list[int] = chosen.indices[0].tolist()
            return guess
        likelihood = torch.softmax(scores.float(), dim=-1).sum(0)
        union = torch.unique(chosen.indices)
        ordered: list[int] = union[likelihood[union].argsort(descending=True)].tolist()
        return ordered


def gate_weight(block: nn.Module, experts_name: str, shape: tuple[int, int]) -> torch.Tensor | None:
    """Finds the matrix of the gate in a MoE block: what has its shape and is not of the experts; None if nothing has.

    Args:
        block: holds gate and experts.
        experts_name: of the experts in the block.
        shape: (experts, hidden).
    """
    for name, parameter in block.named_parameters():
        if tuple(parameter.shape) == shape and not name.startswith(f"{experts_name}."):
            return parameter.detach()
    return None
