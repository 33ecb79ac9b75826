"""Forecasts the model's speed under a plan: time per token, time to the first token, bytes read from disk.

    TPOT  = sum over layers of  dense + E[T of the layer]                         one token of one request
    TTFT  = sum over layers of  dense of n tokens + T of the layer's expected counts    for a prompt of n tokens

A prefill uses every expert that at least one of the n tokens chooses. Expert i is used with probability
1 - (1 - pi_i)^n, as if the tokens chose independently. Real tokens of a prompt share more experts, so the forecast TTFT
is on the high side. The experts are assumed to be in the residency states that the plan assigns for decode steps. A
cold prefill finds no expert resident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zipmoe.errors import InvalidRequest
from zipmoe.planning.cache_plan import CachePlan, LayerPlan
from zipmoe.planning.conditional_poisson import Floats
from zipmoe.planning.layer_time import STATES, layer_seconds, stages
from zipmoe.planning.plan import PlanRequest
from zipmoe.residency.state import Residency


@dataclass(frozen=True)
class Forecast:
    """Expected speed of a plan.

    Attributes:
        tpot_s: seconds per token of a single request, after the first token.
        stall_s: part of `tpot_s` in which the model waits for experts and computes nothing.
        bytes_per_token: bytes that a decode step of one token reads from disk.
        ttft_s: seconds from a prompt to the first token, with the plan's experts resident.
        cold_ttft_s: the same with no expert resident, as right after the start.
        prompt_tokens: length of the prompt.
        prompt_bytes: bytes read from disk for the prompt, with the plan's experts resident.
    """

    tpot_s: float
    stall_s: float
    bytes_per_token: float
    ttft_s: float
    cold_ttft_s: float
    prompt_tokens: int
    prompt_bytes: float


def forecast(plan: CachePlan, request: PlanRequest, prompt_tokens: int) -> Forecast:
    """Forecasts the speed of the model under a plan.

    Args:
        plan: the plan, made for `request`.
        request: the inputs of the plan.
        prompt_tokens: length of the prompt, at least 1.

    Raises:
        InvalidRequest: `prompt_tokens` is out of range.
    """
    if prompt_tokens < 1:
        raise InvalidRequest(f"a prompt has at least 1 token, not {prompt_tokens}")
    dense = request.costs.dense
    tpot_s = plan.seconds + len(plan.layers) * dense.seconds(1)
    prefill_dense_s = len(plan.layers) * dense.seconds(prompt_tokens)
    warm, cold = (
        [
            _prefill(residency, inclusion, request, prompt_tokens)
            for residency, inclusion in zip(residencies, request.inclusion, strict=True)
        ]
        for residencies in (
            [layer.residency for layer in plan.layers],
            [(Residency.ABSENT,) * len(layer.residency) for layer in plan.layers],
        )
    )
    return Forecast(
        tpot_s=tpot_s,
        stall_s=max(0.0, plan.seconds - sum(_compute_stage_s(layer, request) for layer in plan.layers)),
        bytes_per_token=plan.read_bytes,
        ttft_s=sum(seconds for seconds, _ in warm) + prefill_dense_s,
        cold_ttft_s=sum(seconds for seconds, _ in cold) + prefill_dense_s,
        prompt_tokens=prompt_tokens,
        prompt_bytes=sum(nbytes for _, nbytes in warm),
    )


def _compute_stage_s(layer: LayerPlan, request: PlanRequest) -> float:
    """Returns the average seconds of a layer's compute stages, which include recoveries on shared cores."""
    costs = request.costs
    total = 0.0
    for state, hits in layer.hits.items():
        total += hits * stages(state, request.expert, costs).compute_s
    return total


def _prefill(
    residency: Sequence[Residency], inclusion: Floats, request: PlanRequest, prompt_tokens: int
) -> tuple[float, float]:
    """Returns the seconds and the bytes of one layer's routed experts in a prefill."""
    used = 1 - (1 - np.minimum(inclusion, 1.0)) ** prompt_tokens
    by_state = [float(sum(used[i] for i, each in enumerate(residency) if each is state)) for state in STATES]
    nbytes = sum(count * request.expert.missing(state) for state, count in zip(STATES, by_state, strict=True))
    counts = np.array([round(count) for count in by_state], dtype=np.int64)
    rows = max(1, round(float(inclusion.sum()) * prompt_tokens / max(1, counts.sum())))
    return float(layer_seconds(counts, request.expert, request.costs, rows)), nbytes
