"""Replaces stock's routed experts: asks a provider for the chosen experts and sums the outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from zipmoe.errors import InternalError
from zipmoe.model.experts.device import ExpertPlacement
from zipmoe.model.experts.ffn import ExpertFfn, Group
from zipmoe.model.experts.next_gate import NextGate
from zipmoe.model.experts.provider import ExpertProvider
from zipmoe.model.linear.packed import Weights, unpacked


class Assignment(NamedTuple):
    """The rows that are routed to an expert, in the order of stock's computation."""

    rows: torch.Tensor
    """Indices into the layer's input, int64, shape (n,)."""

    weights: torch.Tensor
    """Routing weights, shape (n, 1), in the gate's dtype."""

    repeated: bool = False
    """Whether a row may occur twice, as when a token chooses one expert with two of its choices."""


class Call:
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

    def take(self, expert: int, partial: torch.Tensor) -> None:
        """Adds an expert's output once the outputs of all lower ids have been added."""
        self._partials[expert] = partial
        while self._position < len(self._order) and self._order[self._position] in self._partials:
            lowest = self._order[self._position]
            _add_rows(self.result, self.assignments[lowest], self._partials.pop(lowest))
            self._position += 1


class RoutedExperts(nn.Module):
    """Computes a layer's experts in the order of arrival and sums the outputs in ascending expert id, as stock does.

    The module holds no expert. Its only parameters are dense ones that stock keeps in the same module, such as
    GPT-OSS's biases, under stock's names. An error of the provider leaves the module unchanged.
    """

    def __init__(
        self,
        layer: int,
        expert_count: int,
        ffn: ExpertFfn,
        provider: ExpertProvider,
        placement: ExpertPlacement,
    ) -> None:
        """Makes the module of one layer; dense parameters are registered afterwards with `keep_dense`.

        Args:
            layer: ordinal of the MoE layer in forward order, from 0.
            expert_count: number of experts of the layer.
            ffn: computation of one expert.
            provider: source of the experts.
            placement: transfer of an expert's matrices to the device that computes.
        """
        super().__init__()
        self.layer = layer
        self.num_experts = expert_count
        self.ffn = ffn
        self._provider = provider
        self._placement = placement
        self._dense_names: tuple[str, ...] = ()
        self._own_gate: NextGate | None = None
        self._next_gates: tuple[NextGate, ...] = ()
        self._beside: Callable[[torch.Tensor], None] | None = None
        self._meet: Callable[[RoutedExperts, Call], bool] | None = None

    def look_ahead(self, gates: Sequence[NextGate | None]) -> None:
        """Sets the gates that predict for this and the following MoE layers, nearest first; None ends the list."""
        known: list[NextGate] = []
        for gate in gates:
            if gate is None:
                break
            known.append(gate)
        self._own_gate = known[0] if known else None
        self._next_gates = tuple(known[1:])

    def compute_beside(self, compute: Callable[[torch.Tensor], None]) -> None:
        """Sets a function that is called with the rows of a single call once the experts have been asked for."""
        self._beside = compute

    def meet_by(self, meet: Callable[[RoutedExperts, Call], bool]) -> None:
        """Sets a function that may have a call computed together with other calls, and returns whether it has."""
        self._meet = meet

    def announce(self, hidden_states: torch.Tensor) -> None:
        """Announces the experts that the gate will probably choose for some rows, shape (rows, hidden)."""
        if self._own_gate is not None and self._provider.wants_announcements:
            self._provider.announce(self.layer, self._own_gate(hidden_states))

    def keep_dense(self, name: str, parameter: nn.Parameter) -> None:
        """Registers a parameter that the experts' records do not hold; its first dimension is the expert."""
        self.register_parameter(name, parameter)
        self._dense_names += (name,)

    @property
    def has_vectors(self) -> bool:
        """Whether experts have dense parameters beside the matrices of their records."""
        return bool(self._dense_names)

    def forward(self, hidden_states: torch.Tensor, selected: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Computes the layer's routed experts.

        Args:
            hidden_states: bf16, shape (tokens, hidden).
            selected: the gate's choice. Shape (tokens, k): expert ids. Shape (tokens, 1, experts): Switch's one-hot
                rows, all zero where the expert's capacity is used up.
            weights: the gate's weights, shape (tokens, k).

        Returns:
            Shape and dtype of `hidden_states`.

        Raises:
            ZipMoeError: error of the provider; the next pass may be tried.
        """
        call = self._call(hidden_states, selected, weights)
        if call.assignments and not (self._meet is not None and self._meet(self, call)):
            self.compute([call])
        return call.result.to(hidden_states.dtype)

    def compute_with(
        self, hidden_states: torch.Tensor, selected: torch.Tensor, weights: torch.Tensor, beside: Callable[[], None]
    ) -> torch.Tensor:
        """Computes as `forward`, and calls `beside` in the time of the reads instead of `compute_beside`'s function."""
        call = self._call(hidden_states, selected, weights)
        if call.assignments:
            self._compute([call], beside)
        else:
            beside()
        return call.result.to(hidden_states.dtype)

    def _call(self, hidden_states: torch.Tensor, selected: torch.Tensor, weights: torch.Tensor) -> Call:
        if selected.dim() == 3:
            assignments = _assign_one_hot(selected, weights)
        elif hidden_states.shape[0] == 1:
            assignments = _assign_one_row(selected, weights)
        else:
            assignments = _assign(selected, weights)
        return Call(hidden_states, assignments, self.ffn.sum_dtype.of(hidden_states, weights))

    def compute(self, calls: Sequence[Call]) -> None:
        """Computes calls of a layer together: asks for each expert once and computes the rows of each call separately.

        Args:
            calls: calls with at least one assignment each.

        Raises:
            ZipMoeError: error of the provider; the calls may be computed again.
        """
        try:
            self._compute(calls)
        except BaseException:
            for call in calls:
                call.begin_anew()
            raise

    def _compute(self, calls: Sequence[Call], beside: Callable[[], None] | None = None) -> None:
        rows = Counter[int]()
        for call in calls:
            rows.update({expert: len(each.rows) for expert, each in call.assignments.items()})

        def serve(expert: int, matrices: Weights) -> None:
            self._serve(expert, matrices, [call for call in calls if expert in call.assignments])

        self.fetch(rows, lambda: self._compute_beside(calls, beside), serve)

    def fetch(self, rows: Mapping[int, int], beside: Callable[[], None], serve: Callable[[int, Weights], None]) -> None:
        """Asks the provider for the experts of a layer pass and serves each of them as it arrives.

        Args:
            rows: number of rows routed to each expert.
            beside: called once, after the experts have been asked for and before the first is served.
            serve: called with each expert and its matrices, in the order of arrival.

        Raises:
            ZipMoeError: error of the provider, or of `beside` or `serve`.
        """
        awaited = set(rows)
        arrivals = self._provider.experts(self.layer, {expert: rows[expert] for expert in sorted(rows)})
        try:
            beside()
            for expert, matrices in arrivals:
                if expert not in awaited:
                    raise InternalError(f"the provider gave expert {expert} of MoE layer {self.layer} without need")
                awaited.remove(expert)
                serve(expert, matrices)
        finally:
            self._placement.settle()
            if close := getattr(arrivals, "close", None):
                close()
        if awaited:
            raise InternalError(f"the provider left out experts {sorted(awaited)} of MoE layer {self.layer}")

    @contextmanager
    def served_by(self, provider: ExpertProvider) -> Iterator[None]:
        """Takes the experts from another provider inside the `with` block, and computes nothing beside the reads.

        A pass is recorded so: all its operations then run in stock's order.
        """
        before = self._provider, self._beside
        self._provider, self._beside = provider, None
        try:
            yield
        finally:
            self._provider, self._beside = before

    def predict(self, seen: Callable[[], torch.Tensor]) -> None:
        """Tells the provider which experts the next layers will probably choose, as many layers ahead as it wants.

        Args:
            seen: returns the rows of this layer, shape (rows, hidden); called only if a prediction is wanted.
        """
        depth = min(self._provider.guess_depth, len(self._next_gates))
        if depth:
            rows = seen()
            for ahead in range(depth):
                self._provider.prefetch(self.layer + 1 + ahead, self._next_gates[ahead](rows))

    def _compute_beside(self, calls: Sequence[Call], beside: Callable[[], None] | None) -> None:
        """Uses the time of the reads: predicts experts of later layers and computes a single call's shared expert."""
        each = [call.hidden_states for call in calls]
        self.predict(lambda: each[0] if len(each) == 1 else torch.cat(each))
        if beside is not None:
            beside()
        elif self._beside is not None and len(calls) == 1:
            self._beside(calls[0].hidden_states)

    def _serve(self, expert: int, matrices: Weights, calls: Sequence[Call]) -> None:
        at_hand = self._at_hand(matrices)
        biases = tuple(self.get_parameter(name)[expert] for name in self._dense_names)
        partials = self.ffn.together([_group(call, expert) for call in calls], at_hand, biases)
        self._placement.settle()  # from here on the provider may reuse the memory of the matrices
        for call, partial in zip(calls, partials, strict=True):
            call.take(expert, partial)

    def _at_hand(self, matrices: Weights) -> Weights:
        """Brings the matrices to the device that computes, recovered if the FFN takes no packed matrices."""
        return self._placement.load(matrices if self.ffn.takes_packed else unpacked(matrices))


def _group(call: Call, expert: int) -> Group:
    rows, weights = call.assignments[expert].rows, call.assignments[expert].weights
    hidden_states = call.hidden_states
    alone = hidden_states.shape[0] == rows.shape[0] == 1
    return hidden_states if alone else hidden_states.index_select(0, rows), weights


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
        return _assign(selected, weights)
    row = torch.zeros(1, dtype=torch.long, device=selected.device)
    return {expert: Assignment(row, weights[:, k : k + 1]) for k, expert in enumerate(ids)}


def _assign(selected: torch.Tensor, weights: torch.Tensor) -> dict[int, Assignment]:
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
