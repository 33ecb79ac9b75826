"""Replaces stock's routed experts: asks for the chosen experts and sums their outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from zipmoe.model.experts.assignments import ExpertsCall, assign
from zipmoe.model.experts.ffn import ExpertFfn
from zipmoe.model.experts.overlap import NOTHING_BESIDE, Overlap
from zipmoe.model.experts.provider import Arrival, ExpertProvider
from zipmoe.model.experts.supply import ExpertSupply
from zipmoe.model.linear.matrices import unpacked
from zipmoe.model.meeting import meet


class RoutedExperts(nn.Module):
    """Computes a layer's experts in the order of arrival and sums the outputs in ascending expert id, as stock does.

    The module holds no expert. Its only parameters are dense ones that stock keeps in the same module, such as
    GPT-OSS's biases, under stock's names. An error of the provider leaves the module unchanged.
    """

    def __init__(
        self,
        layer: int,
        ffn: ExpertFfn,
        supply: ExpertSupply,
        dense: Mapping[str, nn.Parameter] | None = None,
        overlap: Overlap = NOTHING_BESIDE,
    ) -> None:
        """Makes the module of one layer.

        Args:
            layer: ordinal of the MoE layer in forward order, from 0.
            ffn: computation of one expert.
            supply: source of the experts.
            dense: parameters by name that the experts' records do not hold; their first dimension is the expert.
            overlap: work for the time of the reads.
        """
        super().__init__()
        self.layer = layer
        self.ffn = ffn
        self._supply = supply
        self._overlap = overlap
        self._dense_names = tuple(dense or ())
        for name, parameter in (dense or {}).items():
            self.register_parameter(name, parameter)

    @property
    def has_vectors(self) -> bool:
        """Whether experts have dense parameters beside the matrices of their records."""
        return bool(self._dense_names)

    def vectors(self, expert: int) -> tuple[torch.Tensor, ...]:
        """Returns an expert's share of the dense parameters, in the order of their names."""
        return tuple(self.get_parameter(name)[expert] for name in self._dense_names)

    def forward(self, hidden_states: torch.Tensor, selected: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Computes the layer's routed experts, for several passes at once if the running pass is a coroutine.

        Args:
            hidden_states: bf16, shape (tokens, hidden).
            selected: the gate's choice: expert ids or one-hot rows, as `assign` takes them.
            weights: the gate's weights, shape (tokens, k).

        Returns:
            Shape and dtype of `hidden_states`.

        Raises:
            ZipMoeError: error of the provider; the next pass may be tried.
        """
        call = self._call(hidden_states, selected, weights)
        if call.assignments and not meet(self, call):
            self.compute([call])
        return call.result.to(hidden_states.dtype)

    def compute_with(
        self, hidden_states: torch.Tensor, selected: torch.Tensor, weights: torch.Tensor, beside: Callable[[], None]
    ) -> torch.Tensor:
        """Computes as `forward`, and calls `beside` in the time of the reads instead of the shared expert."""
        call = self._call(hidden_states, selected, weights)
        if call.assignments:
            self._compute([call], beside)
        else:
            beside()
        return call.result.to(hidden_states.dtype)

    def compute(self, calls: Sequence[ExpertsCall]) -> None:
        """Computes calls of a layer together: asks for each expert once and computes the rows of each call separately.

        Args:
            calls: calls with at least one assignment each.

        Raises:
            ZipMoeError: error of the provider; the calls may be computed again.
        """
        only = calls[0].hidden_states if len(calls) == 1 else None
        try:
            self._compute(calls, lambda: self._overlap.compute_shared(only))
        except BaseException:
            for call in calls:
                call.begin_anew()
            raise

    def fetch(self, rows: Mapping[int, int], beside: Callable[[], None], serve: Callable[[Arrival], None]) -> None:
        """Asks for the experts of a pass through the layer and serves each as it arrives; see `ExpertSupply.fetch`."""
        self._supply.fetch(self.layer, rows, beside, serve)

    def announce(self, hidden_states: torch.Tensor) -> None:
        """Announces the experts that the gate will probably choose for some rows, shape (rows, hidden)."""
        provider, gates = self._supply.provider, self._overlap.gates
        if gates and provider.wants_announcements:
            provider.announce(self.layer, gates[0](hidden_states))

    def predict(self, seen: Callable[[], torch.Tensor]) -> None:
        """Tells the provider which experts the next layers will probably choose, as many layers ahead as it wants.

        Args:
            seen: returns the rows of this layer, shape (rows, hidden); called only if a prediction is wanted.
        """
        provider, gates = self._supply.provider, self._overlap.gates[1:]
        depth = min(provider.guess_depth, len(gates))
        if depth:
            rows = seen()
            for ahead, gate in enumerate(gates[:depth], 1):
                provider.prefetch(self.layer + ahead, gate(rows))

    @contextmanager
    def served_by(self, provider: ExpertProvider) -> Iterator[None]:
        """Takes the experts from another provider inside the `with` block, and computes nothing beside the reads.

        A pass is recorded so: all its operations then run in stock's order.
        """
        before = self._supply, self._overlap
        self._supply, self._overlap = replace(self._supply, provider=provider), NOTHING_BESIDE
        try:
            yield
        finally:
            self._supply, self._overlap = before

    def _call(self, hidden_states: torch.Tensor, selected: torch.Tensor, weights: torch.Tensor) -> ExpertsCall:
        assignments = assign(hidden_states, selected, weights)
        return ExpertsCall(hidden_states, assignments, self.ffn.sum_dtype.of(hidden_states, weights))

    def _compute(self, calls: Sequence[ExpertsCall], beside: Callable[[], None]) -> None:
        rows = Counter[int]()
        for call in calls:
            rows.update({expert: len(each.rows) for expert, each in call.assignments.items()})

        def meanwhile() -> None:
            each = [call.hidden_states for call in calls]
            self.predict(lambda: each[0] if len(each) == 1 else torch.cat(each))
            beside()

        self.fetch(rows, meanwhile, lambda arrival: self._serve(arrival, calls))

    def _serve(self, arrival: Arrival, calls: Sequence[ExpertsCall]) -> None:
        """Computes an expert for the calls that have chosen it."""
        expert, matrices, await_rest = arrival
        if not self.ffn.takes_packed:  # otherwise the kernels compute in host memory
            matrices, await_rest = self._supply.placement.load(unpacked(arrival.one_by_one())), None
        served = [call for call in calls if expert in call.assignments]
        groups = [call.group(expert) for call in served]
        partials = self.ffn.together(groups, matrices, self.vectors(expert), await_rest)
        self._supply.placement.settle()  # from here on the provider may reuse the memory of the matrices
        for call, partial in zip(served, partials, strict=True):
            call.take(expert, partial)
