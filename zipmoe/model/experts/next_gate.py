"""Predicts the experts that a layer and the next layers will choose, before the gates run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import nn
from torch.nn.functional import linear

from zipmoe.model.linear.native_linear import Linears

#: Rows of a long prompt that are enough for a prediction: the last ones, nearest to the next tokens.
MOST_ROWS = 64


class NextGate:
    """Predicts the chosen experts of a MoE layer from the hidden states of the same or an earlier layer.

    Neighbouring layers see similar states, since each layer only adds to the residual stream. So most predictions come
    true. Only the gate's matrix is applied, without normalisation and grouping: an order of likelihood is enough.
    """

    def __init__(self, owner: nn.Module, name: str, chosen_count: int, linears: Linears | None) -> None:
        """Makes the gate; its matrix is taken at the first call, since dense weights are assigned after the build.

        Args:
            owner: module that owns the gate's matrix, shape (experts, hidden).
            name: name of the matrix in this module.
            chosen_count: number of experts that a token gets.
            linears: computes the product; None for torch.
        """
        self._owner = owner
        self._name = name
        self._linear: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = linears or linear
        self._chosen_count = min(chosen_count, owner.get_parameter(name).shape[0])

    @cached_property
    def _weight(self) -> torch.Tensor:
        return self._owner.get_parameter(self._name).detach()

    def __call__(self, hidden_states: torch.Tensor) -> list[int]:
        """Predicts the experts that the rows will use in the gate's layer, the likeliest first.

        Args:
            hidden_states: shape (rows, hidden), input of the gate of the same or an earlier layer.

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


def find_gate(block: nn.Module, experts_name: str, shape: tuple[int, int]) -> tuple[nn.Module, str] | None:
    """Finds the gate's matrix in a MoE block: the first parameter of that shape outside the experts.

    Args:
        block: module that holds gate and experts.
        experts_name: name of the experts' module in the block.
        shape: (experts, hidden).

    Returns:
        The module that owns the matrix, and the name in this module; None if there is no such parameter.
    """
    for name, parameter in block.named_parameters():
        if tuple(parameter.shape) == shape and not name.startswith(f"{experts_name}."):
            owner, _, attribute = name.rpartition(".")
            return block.get_submodule(owner), attribute
    return None
