"""Makes the cache plan: slots of each pool and residency states of all experts, for the least time of a step.

    popularity -> inclusion probabilities pi     popularity.py
    -> conditional Poisson weights w             conditional_poisson.py
    -> expected time of each option of a layer   layer_options.py, from the makespans of layer_time.py
    -> one option of each layer, within budget   knapsack.py

Source: ZipMoE (arXiv 2601.21198), hierarchical cache planning. This planner differs in two ways. All layers share one
byte budget, so a layer with unevenly used experts leaves memory to other layers. Memory consists of three kinds of
slots (E, SM, tensor), and a PACKED expert takes an E slot and an SM slot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zipmoe.errors import BudgetInfeasible
from zipmoe.planning.cache_plan import SLOTS_OF, CachePlan, LayerPlan
from zipmoe.planning.conditional_poisson import Floats, fit_weights
from zipmoe.planning.costs import Costs
from zipmoe.planning.knapsack import choose_options
from zipmoe.planning.layer_options import LayerOptions, cut_places, layer_options
from zipmoe.planning.layer_time import STATES, ExpertBytes, seconds_table
from zipmoe.planning.pool_sizes import PoolSizes

MAX_CHOSEN = 16
"""Experts of a step above which groups of experts are planned as one expert. The hits per state vary little then."""

HIDDEN_READ_WEIGHT = 1e-3
"""Weight of expected read time in the value of an option. Of two plans of equal time, the plan that reads less wins."""


@dataclass(frozen=True)
class PlanRequest:
    """Inputs of a plan: inclusion probabilities, measured costs and sizes.

    Attributes:
        inclusion: for each layer, float64, shape (n,): inclusion probability of each expert. The sum is a whole number,
            the experts of a step.
        costs: measured costs of this machine.
        expert: bytes of one expert, on average.
        slot_bytes: bytes of a slot of each pool.
    """

    inclusion: Sequence[Floats]
    costs: Costs
    expert: ExpertBytes
    slot_bytes: PoolSizes


def transient_window(request: PlanRequest, budget_bytes: int) -> PoolSizes:
    """Computes the transient window: slots of each pool that are kept free of residents, for experts in transit.

    The window holds the misses of a step in two layers. If these slots are more than a quarter of the budget, the
    window holds the misses in one layer. The window has tensor slots only where experts have to be recovered before
    they are computed.
    """
    chosen = max(1, *(round(float(layer.sum())) for layer in request.inclusion))
    recovered = request.costs.packed_ffn is None
    for count in (2 * chosen, chosen):
        window = PoolSizes(*(max(2, count),) * 2, max(2, count) if recovered else 0)
        if 4 * window.nbytes(request.slot_bytes) <= budget_bytes:
            break
    return window


class Planner:
    """Plans a model's cache for any budget. The options of all layers are evaluated once."""

    def __init__(self, request: PlanRequest) -> None:
        """Evaluates the options of every layer.

        Raises:
            InvalidRequest: the inclusion probabilities of a layer are out of range or do not sum to a whole number.

        Cost: 0.4 s for 24 layers of 60 experts, 4 a step; layers of equal popularity are evaluated once.
        """
        self._request = request
        self._expert_count = sum(len(layer) for layer in request.inclusion)
        self._options = _all_options(request)
        sizes = np.array([SLOTS_OF[state].nbytes(request.slot_bytes) for state in STATES[:-1]], dtype=np.int64)
        missing_s = np.array([request.costs.queued_read_s(request.expert.missing(state)) for state in STATES])
        self._nbytes = [each.counts @ sizes for each in self._options]
        self._values = [each.seconds + HIDDEN_READ_WEIGHT * (each.hits @ missing_s) for each in self._options]

    def plan(self, budget_bytes: int, window: PoolSizes) -> CachePlan:
        """Plans the residency state of every expert and the slots of each pool.

        Args:
            budget_bytes: bytes of all slots together.
            window: slots of each pool that are kept free of residents.

        Raises:
            BudgetInfeasible: the budget does not hold the window.

        Cost: 0.1 s for 24 layers.
        """
        window = PoolSizes(*(min(count, self._expert_count) for count in window))
        smallest_bytes = window.nbytes(self._request.slot_bytes)
        if budget_bytes < smallest_bytes:
            raise BudgetInfeasible(
                f"{budget_bytes} bytes of slots are less than the {smallest_bytes} that experts on their way need",
                smallest_bytes=smallest_bytes,
            )
        picks = choose_options(self._nbytes, self._values, budget_bytes - smallest_bytes)
        layers = tuple(
            _layer_plan(inclusion, options, pick)
            for inclusion, options, pick in zip(self._request.inclusion, self._options, picks, strict=True)
        )
        held = [SLOTS_OF[state] for layer in layers for state in layer.residency]
        slots = PoolSizes(
            *(
                min(self._expert_count, sum(column) + transient)
                for column, transient in zip(zip(*held, strict=True), window, strict=True)
            )
        )
        return CachePlan(layers, self._widened(slots, budget_bytes), self._request.slot_bytes, self._request.expert)

    def _widened(self, slots: PoolSizes, budget_bytes: int) -> PoolSizes:
        """Spends the bytes that the plan leaves over on more slots for chunks.

        Most bytes are left over when every expert is planned FULL. A prompt needs nearly every expert, and recovers no
        expert that can be computed PACKED. With only the few chunk slots of the window, almost no chunks that the
        prompt has read would still be resident for the tokens after the prompt.
        """
        slot_bytes = self._request.slot_bytes
        left_bytes = budget_bytes - slots.nbytes(slot_bytes)
        more = max(0, left_bytes // PoolSizes(1, 1, 0).nbytes(slot_bytes))
        return slots._replace(e=min(self._expert_count, slots.e + more), sm=min(self._expert_count, slots.sm + more))


def _all_options(request: PlanRequest) -> list[LayerOptions]:
    """Evaluates the options of every layer; fits layers of one kind together and evaluates equal layers once."""
    ranked = [np.sort(np.asarray(inclusion, dtype=np.float64))[::-1] for inclusion in request.inclusion]
    kinds: dict[tuple[int, int], dict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
    for layer, inclusion in enumerate(ranked):
        kinds[len(inclusion), round(float(inclusion.sum()))][inclusion.tobytes()].append(layer)
    options: dict[int, LayerOptions] = {}
    for (expert_count, chosen), equal in kinds.items():
        group = max(1.0, chosen / MAX_CHOSEN)  # experts that are planned as one expert
        inclusion = np.stack([ranked[layers[0]] for layers in equal.values()])
        weights = fit_weights(inclusion / group)
        table = group * seconds_table(round(chosen / group), request.expert, request.costs)
        places = cut_places(expert_count)
        for row, layers in enumerate(equal.values()):
            evaluated = layer_options(weights[row], inclusion[row], table, places)
            options.update(dict.fromkeys(layers, evaluated))
    return [options[layer] for layer in range(len(ranked))]


def _layer_plan(inclusion: Floats, options: LayerOptions, pick: int) -> LayerPlan:
    """Assigns the states of an option to a layer's experts, most popular first; of equal experts the lower id first."""
    counts = options.counts[pick].tolist()
    by_rank = [state for state, count in zip(STATES, counts, strict=False) for _ in range(count)]
    by_rank += [STATES[-1]] * (len(inclusion) - len(by_rank))
    residency = dict(zip(np.argsort(-inclusion, kind="stable").tolist(), by_rank, strict=True))
    return LayerPlan(
        residency=tuple(residency[expert] for expert in range(len(inclusion))),
        seconds=float(options.seconds[pick]),
        hits=dict(zip(STATES, options.hits[pick].tolist(), strict=True)),
    )
