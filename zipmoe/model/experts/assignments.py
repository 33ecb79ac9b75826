"""Assigns the rows of a layer to the chosen experts, and sums the experts' outputs in ascending expert id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Assignment(NamedTuple):
    """The rows that are routed to an expert, in the order of stock's computation."""

    rows: torch.Tensor
    """Indices into the layer's input, int64, shape (n,)."""

    weights: torch.Tensor
    """Routing weights, shape (n, 1), in the gate's dtype."""

    repeated: bool = False
    """Whether a row may occur twice, as when a token chooses one expert with two of its choices."""


class ExpertsCall:
    """A call of a layer's routed experts: the rows of each expert and the sum of the outputs so far.

    Outputs are added in ascending expert id, whatever the order of arrival.
    """

    def __init__(self, hidden_states: torch.Tensor, assignments: dict[int, Assignment], dtype: torch.dtype) -> None:
        """Starts with a sum of zeros.

        Args:
            hidden_states: bf16, shape (tokens, hidden).
            assignments: rows and routing weights by expert id.
            dtype: dtype of the sum.
        """
        self.hidden_states = hidden_states
        self.assignments = assignments
        self._dtype = dtype
        self._order = sorted(assignments)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Drops all outputs, as after an error of the provider."""
        self.result = torch.zeros_like(self.hidden_states, dtype=self._dtype)
        self._position = 0
        self._partials: dict[int, torch.Tensor] = {}

    def group(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the rows of an expert, shape (n, hidden), and their routing weights, shape (n, 1)."""
        rows, weights, _ = self.assignments[expert]
        hidden_states = self.hidden_states
        alone = hidden_states.shape[0] == rows.shape[0] == 1
        return hidden_states if alone else hidden_states.index_select(0, rows), weights

    def take(self, expert: int, partial: torch.Tensor) -> None:
        """Adds an expert's output once the outputs of all lower ids have been added."""
        self._partials[expert] = partial
        while self._position < len(self._order) and self._order[self._position] in self._partials:
            lowest = self._order[self._position]
            _add_rows(self.result, self.assignments[lowest], self._partials.pop(lowest))
            self._position += 1


def assign(hidden_states: torch.Tensor, selected: torch.Tensor, weights: torch.Tensor) -> dict[int, Assignment]:
    """Assigns rows to experts, in the order of stock's computation.

    Args:
        hidden_states: shape (tokens, hidden).
        selected: the gate's choice. Shape (tokens, k): expert ids. Shape (tokens, 1, experts): Switch's one-hot rows,
            all zero where the expert's capacity is used up.
        weights: the gate's weights, shape (tokens, k).
    """
    if selected.dim() == 3:
        return _assign_one_hot(selected, weights)
    if hidden_states.shape[0] == 1:
        return _assign_one_row(selected, weights)
    return _assign_rows(selected, weights)


def _add_rows(result: torch.Tensor, assigned: Assignment, partial: torch.Tensor) -> None:
    """Adds `partial` to the assigned rows of `result`, with the bits of `index_add_`.

    `index_add_` wakes torch's threads even for two rows and takes 0.4 ms or more; a single thread takes 0.02 ms.
    """
    if assigned.repeated:
        result.index_add_(0, assigned.rows, partial)
    elif result.shape[0] == 1:
        result.add_(partial)
    else:
        result.index_copy_(0, assigned.rows, result.index_select(0, assigned.rows).add_(partial))


def _assign_one_row(selected: torch.Tensor, weights: torch.Tensor) -> dict[int, Assignment]:
    """Assigns the row of a single request's decode step, without sorting tensors."""
    ids: Sequence[int] = selected[0].tolist()
    if len(set(ids)) != len(ids):
        return _assign_rows(selected, weights)
    row = torch.zeros(1, dtype=torch.long, device=selected.device)
    return {expert: Assignment(row, weights[:, k : k + 1]) for k, expert in enumerate(ids)}


def _assign_rows(selected: torch.Tensor, weights: torch.Tensor) -> dict[int, Assignment]:
    """Orders rows by expert, then by rank in the token's choice, then by token, as stock's `where` does."""
    experts = selected.t().reshape(-1)
    order = experts.argsort(stable=True)
    chosen = selected.sort(dim=1).values
    repeated = bool((chosen[:, 1:] == chosen[:, :-1]).any())
    return _split(experts[order], order % selected.shape[0], weights.t().reshape(-1)[order], repeated=repeated)


def _assign_one_hot(selected: torch.Tensor, weights: torch.Tensor) -> dict[int, Assignment]:
    tokens, _, experts = selected.nonzero(as_tuple=True)
    order = experts.argsort(stable=True)
    rows = tokens[order]
    return _split(experts[order], rows, weights[rows, 0])


def _split(
    experts: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor, *, repeated: bool = False
) -> dict[int, Assignment]:
    """Cuts sorted assignments where the expert changes."""
    ids, counts = torch.unique_consecutive(experts, return_counts=True)
    sizes = counts.tolist()
    pieces = zip(ids.tolist(), torch.split(rows, sizes), torch.split(weights[:, None], sizes), strict=True)
    return {expert: Assignment(rows, part, repeated) for expert, rows, part in pieces}
