from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipmoe.errors import BudgetInfeasible, UnsupportedModel
from zipmoe.residency.budget import BudgetRequest, kv_bytes_per_token, split_budget

MIB = 1 << 20
QWEN = {"num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_size": 2048}
QWEN_MOE = {**QWEN, "num_experts_per_tok": 4}


@dataclass(frozen=True)
class Figures:
    max_record_bytes: int = 11_600_000
    max_tensor_bytes: int = 17_301_504
    dense_bytes: int = 1090 * MIB
    expert_count: int = 480


@given(
    budget=st.integers(1, 64 * 1024),
    experts=st.integers(1, 6000),
    used=st.integers(1, 16),
    record=st.integers(1, 20 * MIB),
    workers=st.integers(1, 32),
)
def test_the_shares_add_up_to_the_budget_and_hold_their_arenas(
    budget: int, experts: int, used: int, record: int, workers: int
) -> None:
    figures = Figures(max_record_bytes=record, max_tensor_bytes=record * 3 // 2 + 1, expert_count=experts)
    request = BudgetRequest(budget * MIB, worker_count=workers)
    try:
        split = split_budget(figures, {**QWEN, "num_experts_per_tok": used}, request)
    except BudgetInfeasible as error:
        assert error.smallest_bytes > request.budget_bytes
        at_least = BudgetRequest(error.smallest_bytes, worker_count=workers)
        split_budget(figures, {**QWEN, "num_experts_per_tok": used}, at_least)
        return
    assert split.store_bytes + split.decoder_bytes + split.router_bytes == request.budget_bytes
    assert 1 <= split.chunk_slots <= experts and 1 <= split.tensor_slots <= experts
    assert split.store_bytes >= split.chunk_slots * record
    assert split.decoder_bytes >= split.tensor_slots * figures.max_tensor_bytes
    assert split.router_bytes >= figures.dense_bytes + split.kv_bytes + split.workspace_bytes


def test_an_infeasible_budget_names_the_smallest_feasible_one_and_the_reason() -> None:
    with pytest.raises(BudgetInfeasible, match=r"smallest feasible one is \d+\.\d\d GiB: .*dense weights 1\.06 GiB"):
        split_budget(Figures(), QWEN_MOE, BudgetRequest(1024 * MIB))


def test_a_larger_budget_never_holds_fewer_experts() -> None:
    slots = [split_budget(Figures(), QWEN_MOE, BudgetRequest(gib * 1024 * MIB)).tensor_slots for gib in range(5, 24)]
    assert slots == sorted(slots)
    assert slots[-1] == 480


@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        (QWEN, 24 * 2 * 16 * 128 * 2),
        ({"num_hidden_layers": 27, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 27 * (512 + 64) * 2),
        ({"is_encoder_decoder": True, "num_layers": 24, "num_heads": 16, "d_kv": 64}, 24 * 4 * 16 * 64 * 2),
    ],
)
def test_kv_cache_is_sized_by_what_each_family_caches(config: dict[str, object], per_token: int) -> None:
    assert kv_bytes_per_token(config) == per_token


def test_a_config_without_layers_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="num_hidden_layers"):
        kv_bytes_per_token({"num_attention_heads": 2, "hidden_size": 8})
