from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipmoe.errors import BudgetInfeasible, UnsupportedModel
from zipmoe.planning.kv_bytes import kv_bytes_per_token, text_part
from zipmoe.planning.memory_split import (
    MOST_STATES,
    STATE_SHARE,
    BudgetRequest,
    arena_bytes,
    experts_per_token,
    slot_bytes,
    split_budget,
)
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.planning.workspace import COPIED_EXPERT_BYTES, SCORE_BYTES, workspace_bytes
from zipmoe.store.format.measured import MeasuredSizes

MIB = 1 << 20
QWEN = {"num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_size": 2048}
DEEPSEEK = {
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
DEEPSEEK_MOE = {**DEEPSEEK, "hidden_size": 2048, "num_experts_per_tok": 6}
QWEN_MOE = {**QWEN, "num_experts_per_tok": 4}


@dataclass(frozen=True)
class Figures:
    codec_name: str = "zstd"
    max_e_bytes: int = 2_949_120
    max_sm_bytes: int = 8_650_752
    max_tensor_bytes: int = 17_301_504
    dense_bytes: int = 1090 * MIB
    expert_count: int = 480


@given(
    budget=st.integers(1, 64 * 1024),
    experts=st.integers(1, 6000),
    used=st.integers(1, 16),
    e_bytes=st.integers(1, 5 * MIB),
    workers=st.integers(1, 32),
    codec=st.sampled_from(["zstd", "cascade"]),
)
def test_the_shares_add_up_to_the_budget_and_hold_their_arenas(
    budget: int, experts: int, used: int, e_bytes: int, workers: int, codec: str
) -> None:
    figures = Figures(
        codec, max_e_bytes=e_bytes, max_sm_bytes=3 * e_bytes, max_tensor_bytes=6 * e_bytes + 1, expert_count=experts
    )
    request = BudgetRequest(budget * MIB, worker_count=workers)
    try:
        split = split_budget(figures, {**QWEN, "num_experts_per_tok": used}, request)
    except BudgetInfeasible as error:
        assert error.smallest_bytes > request.budget_bytes
        at_least = BudgetRequest(error.smallest_bytes, worker_count=workers)
        split_budget(figures, {**QWEN, "num_experts_per_tok": used}, at_least)
        return
    assert split.store_bytes + split.decoder_bytes + split.router_bytes == request.budget_bytes
    slots = split.slots
    assert 1 <= slots.e <= experts and 1 <= slots.sm <= experts
    assert (slots.tensor == 0) if codec == "cascade" else (1 <= slots.tensor <= experts)
    assert split.store_bytes >= slots.e * figures.max_e_bytes + slots.sm * figures.max_sm_bytes
    assert split.decoder_bytes >= slots.tensor * figures.max_tensor_bytes
    assert split.router_bytes >= figures.dense_bytes + split.kv_bytes + split.workspace_bytes


def test_an_infeasible_budget_names_the_smallest_feasible_one_and_the_reason() -> None:
    with pytest.raises(BudgetInfeasible, match=r"smallest feasible one is \d+\.\d\d GiB: .*dense weights 1\.06 GiB"):
        split_budget(Figures(), QWEN_MOE, BudgetRequest(1024 * MIB))


def test_a_larger_budget_never_holds_fewer_experts() -> None:
    for codec, last in (("zstd", PoolSizes(8, 8, 480)), ("cascade", PoolSizes(480, 480, 0))):
        slots = [split_budget(Figures(codec), QWEN_MOE, BudgetRequest(gib * 1024 * MIB)).slots for gib in range(5, 24)]
        assert slots == sorted(slots)
        assert slots[-1] == last


def test_the_slots_that_were_planned_are_kept_and_have_to_fit() -> None:
    planned = PoolSizes(200, 150, 10)
    request = BudgetRequest(8 * 1024 * MIB, slots=planned)
    split = split_budget(Figures(), QWEN_MOE, request)
    assert split.slots == planned
    assert split.store_bytes + split.decoder_bytes + split.router_bytes == request.budget_bytes
    with pytest.raises(BudgetInfeasible, match="200 for E-chunks, 150 for SM-chunks, 10 for tensors"):
        split_budget(Figures(), QWEN_MOE, BudgetRequest(3 * 1024 * MIB, slots=planned))


def test_what_is_computed_from_chunks_gets_no_tensor_slots_and_a_gpu_always_does() -> None:
    for codec, device, has_tensors in (("cascade", "cpu", False), ("cascade", "cuda", True), ("zstd", "cpu", True)):
        split = split_budget(Figures(codec), QWEN_MOE, BudgetRequest(8 * 1024 * MIB, device=device))
        assert (split.slots.tensor > 0) is has_tensors
        assert split.slots.e == split.slots.sm


@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        (QWEN, 24 * 2 * 16 * 128 * 2),
        (DEEPSEEK, 27 * 16 * (128 + 64 + 128) * 2),
        ({"is_encoder_decoder": True, "num_layers": 24, "num_heads": 16, "d_kv": 64}, 24 * 4 * 16 * 64 * 2),
    ],
)
def test_kv_cache_is_sized_by_what_each_family_caches(config: dict[str, object], per_token: int) -> None:
    assert kv_bytes_per_token(config) == per_token


def test_latents_take_a_fraction_and_are_what_a_gpu_keeps() -> None:
    per_token = 27 * (512 + 64) * 2
    assert kv_bytes_per_token(DEEPSEEK, "latent") == per_token
    assert kv_bytes_per_token(QWEN, "latent") == kv_bytes_per_token(QWEN)
    for request in (BudgetRequest(1, kv_tokens=64, kv_cache="latent"), BudgetRequest(1, kv_tokens=64, device="cuda")):
        assert request.kv_bytes(DEEPSEEK) == 64 * per_token
    assert BudgetRequest(1, kv_tokens=64).kv_bytes(DEEPSEEK) == 64 * kv_bytes_per_token(DEEPSEEK)


def test_a_budget_that_only_latents_fit_is_refused_with_a_hint() -> None:
    with pytest.raises(BudgetInfeasible) as refused:
        split_budget(Figures(), DEEPSEEK_MOE, BudgetRequest(2560 * MIB))
    assert "--kv-cache latent" in refused.value.diagnostics()
    split_budget(Figures(), DEEPSEEK_MOE, BudgetRequest(2560 * MIB, kv_cache="latent"))


def test_a_config_without_layers_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="num_hidden_layers"):
        kv_bytes_per_token({"num_attention_heads": 2, "hidden_size": 8})


STATE_BYTES = 63 * MIB
HYBRID = {**text_part(QWEN_MOE, MeasuredSizes(20 * 1024, STATE_BYTES, 8)), "max_position_embeddings": 4096}


@given(budget=st.integers(3 * 1024, 64 * 1024))
def test_recurrent_states_are_a_line_of_the_split_and_limit_the_requests(budget: int) -> None:
    request = BudgetRequest(budget * MIB, prompt_tokens=512)
    split = split_budget(Figures(), HYBRID, request)
    assert split.state_requests is not None and 1 <= split.state_requests <= MOST_STATES
    assert split.state_bytes == split.state_requests * STATE_BYTES
    assert split.state_bytes <= max(STATE_BYTES, request.budget_bytes // STATE_SHARE)
    assert split.kv_bytes == request.kv_tokens * 20 * 1024
    held = Figures.dense_bytes + split.kv_bytes + split.workspace_bytes + split.state_bytes
    assert split.router_bytes >= held
    assert split.store_bytes + split.decoder_bytes + split.router_bytes == request.budget_bytes
    assert arena_bytes(Figures(), HYBRID, request) >= split.slots.nbytes(slot_bytes(Figures()))


def test_a_budget_too_small_for_a_recurrent_model_names_the_state_and_the_smallest_one_is_feasible() -> None:
    with pytest.raises(BudgetInfeasible, match=r"recurrent state of one request 0\.06 GiB") as error:
        split_budget(Figures(), HYBRID, BudgetRequest(1024 * MIB))
    smallest = split_budget(Figures(), HYBRID, BudgetRequest(error.value.smallest_bytes))
    assert smallest.state_requests == 1
    assert split_budget(Figures(), QWEN_MOE, BudgetRequest(4096 * MIB)).state_requests is None


def test_stock_code_that_computes_from_copies_is_counted() -> None:
    plain = text_part(QWEN_MOE, MeasuredSizes(196608, 0, 4))
    copying = text_part(QWEN_MOE, MeasuredSizes(196608, 0, 4, stock_experts=True))
    request = BudgetRequest(8192 * MIB)
    more = Figures(max_tensor_bytes=400 * MIB)
    for figures, copied in ((Figures(), COPIED_EXPERT_BYTES), (more, 400 * MIB)):
        split = [split_budget(figures, config, request).workspace_bytes for config in (plain, copying)]
        assert split[1] - split[0] == copied


def test_prompts_attend_for_a_few_heads_at_a_time_only_where_that_is_known() -> None:
    parts = workspace_bytes(QWEN_MOE, 4096)
    scores = 16 * 4096 * 4096 * SCORE_BYTES
    assert parts < scores
    longrope = {**QWEN_MOE, "rope_scaling": {"type": "longrope"}}
    for config in (longrope, text_part(QWEN_MOE, MeasuredSizes(1, 1, 1)), {**QWEN_MOE, "model_type": "gpt_oss"}):
        assert workspace_bytes(config, 4096) > scores
    assert workspace_bytes({"n_heads": 16, "d_model": 2048, "is_encoder_decoder": True}, 4096) > scores


def test_the_sizes_of_a_multimodal_configuration_are_those_of_its_text() -> None:
    config = text_part({"model_type": "some_vlm", "text_config": QWEN_MOE, "vision_config": {"hidden_size": 1}})
    assert kv_bytes_per_token(config) == kv_bytes_per_token(QWEN_MOE)
    assert experts_per_token(config) == 4 and config["hidden_size"] == 2048


def test_an_encoder_decoder_of_another_naming_is_sized() -> None:
    nllb = {"is_encoder_decoder": True, "decoder_layers": 24, "decoder_attention_heads": 16, "d_model": 2048}
    assert kv_bytes_per_token(nllb) == 24 * 4 * 2048 * 2


def test_saved_bytes_of_dense_weights_go_to_slots() -> None:
    saved = 250 * MIB
    plain, compressed = (
        split_budget(Figures("cascade"), QWEN_MOE, BudgetRequest(4096 * MIB, dense_bytes=dense_bytes))
        for dense_bytes in (None, Figures.dense_bytes - saved)
    )
    each = slot_bytes(Figures())
    assert plain.dense_bytes - compressed.dense_bytes == saved
    gained = compressed.slots.e - plain.slots.e
    assert gained == compressed.slots.sm - plain.slots.sm
    assert abs(gained * (each.e + each.sm) - saved) <= each.e + each.sm
    with pytest.raises(BudgetInfeasible) as error:
        split_budget(Figures(), QWEN_MOE, BudgetRequest(1, dense_bytes=Figures.dense_bytes - saved))
    with pytest.raises(BudgetInfeasible) as without:
        split_budget(Figures(), QWEN_MOE, BudgetRequest(1))
    assert without.value.smallest_bytes - error.value.smallest_bytes == saved
