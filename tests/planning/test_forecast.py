from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.planning.costs import MB, make_costs
from zipmoe.errors import InvalidRequest
from zipmoe.planning.costs import Costs, RowCost
from zipmoe.planning.forecast import Forecast, forecast
from zipmoe.planning.layer_time import ExpertBytes
from zipmoe.planning.plan import Planner, PlanRequest
from zipmoe.planning.pool_sizes import PoolSizes

EXPERT = ExpertBytes(3 * MB, 9 * MB, 18 * MB)
LAYERS, EXPERTS, CHOSEN = 3, 10, 2
FUSED = make_costs(packed_ffn=RowCost(1e-3, 0.1e-3), full_ffn=RowCost(1e-3, 0.1e-3))


def forecast_of(costs: Costs, budget_bytes: int, prompt_tokens: int = 1) -> Forecast:
    inclusion = [np.full(EXPERTS, CHOSEN / EXPERTS)] * LAYERS
    request = PlanRequest(inclusion, costs, EXPERT, PoolSizes(*EXPERT))
    return forecast(Planner(request).plan(budget_bytes, PoolSizes(0, 0, 0)), request, prompt_tokens)


def test_with_everything_resident_a_token_takes_what_is_computed() -> None:
    made = forecast_of(FUSED, 1000 * MB)
    assert made.tpot_s == pytest.approx(LAYERS * (5e-3 + CHOSEN * 1e-3))
    assert made.stall_s == pytest.approx(0)
    assert made.bytes_per_token == made.prompt_bytes == pytest.approx(0)


def test_with_nothing_resident_a_token_takes_what_is_read_and_the_last_experts_ffn() -> None:
    made = forecast_of(FUSED, 0)
    assert made.bytes_per_token == pytest.approx(LAYERS * CHOSEN * 12 * MB)
    assert made.tpot_s == pytest.approx(LAYERS * (5e-3 + CHOSEN * 12e-3 + 1e-3))
    assert made.stall_s == pytest.approx(LAYERS * (CHOSEN * 12e-3 + 1e-3 - CHOSEN * 1e-3))


def test_a_prompt_of_one_token_takes_as_long_as_a_token() -> None:
    made = forecast_of(FUSED, 0, prompt_tokens=1)
    assert made.ttft_s == made.cold_ttft_s == pytest.approx(made.tpot_s)


def test_a_long_prompt_uses_every_expert_once_with_all_its_rows() -> None:
    tokens = 200
    made = forecast_of(FUSED, 0, prompt_tokens=tokens)
    rows = tokens * CHOSEN // EXPERTS
    layer_s = (5e-3 + (tokens - 1) * 0.1e-3) + EXPERTS * 12e-3 + (1e-3 + (rows - 1) * 0.1e-3)
    assert made.prompt_bytes == pytest.approx(LAYERS * EXPERTS * 12 * MB)
    assert made.ttft_s == pytest.approx(LAYERS * layer_s)


def test_right_after_the_start_the_first_token_takes_longer() -> None:
    made = forecast_of(FUSED, 200 * MB, prompt_tokens=20)
    assert made.cold_ttft_s > made.ttft_s
    assert made.cold_ttft_s == pytest.approx(forecast_of(FUSED, 0, prompt_tokens=20).ttft_s)


def test_a_slower_disk_shows_in_the_stall_and_not_in_what_is_computed() -> None:
    fast, slow = forecast_of(FUSED, 0), forecast_of(replace(FUSED, read_bytes_per_s=0.5e9), 0)
    assert slow.tpot_s - slow.stall_s == pytest.approx(fast.tpot_s - fast.stall_s)
    assert slow.stall_s - fast.stall_s == pytest.approx(LAYERS * CHOSEN * 12e-3)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least 1 token"):
        forecast_of(FUSED, 0, prompt_tokens=0)
