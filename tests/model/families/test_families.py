"""Every Mixture-of-Experts model type of the installed transformers, on a tiny random checkpoint, beside stock."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from zipmoe.cli.showing.families import probe_types
from zipmoe.model.families.random_weights import random_model
from zipmoe.model.families.sizes import EXPERTS
from zipmoe.model.families.twin import shrink, tiny_config, write_checkpoint
from zipmoe.model.stock.experts_module import stacked_matrices
from zipmoe.model.stock.model_class import whole_class
from zipmoe.model.stock.model_types import moe_model_types

#: One of each path and of each repair.
ORDINARY = {
    "qwen3_moe": "shared", "glm4v_moe": "shared", "qwen3_vl_moe": "shared", "ernie4_5_moe": "shared",
    "qwen3_5_moe": "joined", "gemma4_text": "joined", "deepseek_v32": "joined", "nemotron_h": "joined",
    "minimax": "joined", "lfm2_moe": "joined", "jetmoe": "joined", "nllb-moe": "joined", "dbrx": "joined",
    "llama4": "refused",
}  # fmt: skip
LAZY = {"jetmoe", "nllb-moe", "dbrx", "longcat_flash", "muse_spark"}
REFUSED = {
    "diffusion_gemma": "no class that generates text",
    "gemma4_assistant": "enable_moe_block must be False|no Mixture-of-Experts|cannot be built|no small model",
    "inkling_mm_model": "scipy",
    "llama4": r"experts are called with \(hidden_states\), the chosen experts are needed",
    "llama4_text": r"experts are called with \(hidden_states\), the chosen experts are needed",
    "qwen3_omni_moe": "no forward pass of its own",
}
SHARED = (
    "afmoe", "aria", "axk1", "beam", "cohere2_moe", "deepseek_ocr2", "deepseek_v2", "deepseek_v3", "dots1",
    "ernie4_5_vl_moe", "exaone_moe", "flex_olmo", "flint", "glm4_moe", "glm4_moe_lite", "gpt_oss", "granitemoe",
    "granitemoe_swa", "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "kolibri1", "laguna", "mellum", "minimax_m2",
    "minimax_m3_vl", "mistral4", "mixtral", "olmoe", "phimoe", "qwen2_moe", "solar_open", "step3p7",
    "switch_transformers",
)  # fmt: skip


@pytest.mark.parametrize("model_type", ORDINARY)
def test_a_model_type_is_computed_by_its_path_with_stocks_bits(model_type: str) -> None:
    (row,) = probe_types([model_type])
    assert row.path == ORDINARY[model_type], row.reason
    assert bool(row.lazy) == (model_type in LAZY)


@pytest.mark.extra
@pytest.mark.parametrize("model_type", moe_model_types())
def test_every_model_type_is_identical_to_stock_or_refused_for_a_reason(model_type: str) -> None:
    (row,) = probe_types([model_type])
    if model_type in REFUSED:
        assert not row.served
        assert re.search(REFUSED[model_type], row.reason), row.reason
    else:
        assert row.path in ("shared", "joined"), row.reason
        assert row.path == "shared" or model_type not in SHARED, row.reason


def test_transformers_has_more_than_eighty_such_types() -> None:
    known = moe_model_types()
    assert len(known) > 80 and {*ORDINARY, *REFUSED, *SHARED} <= set(known)
    assert "llama" not in known and "openai_privacy_filter" not in known


@pytest.mark.parametrize("model_type", ["qwen3_next", "gemma4", "deepseek_v32", "nllb-moe"])
def test_a_written_twin_loads_as_it_was_drawn(model_type: str, tmp_path: Path) -> None:
    config = tiny_config(model_type)
    write_checkpoint(config, tmp_path, seed=1)
    drawn = random_model(whole_class(config), config, seed=1)
    loaded, loading = whole_class(config).from_pretrained(tmp_path, dtype=torch.bfloat16, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["mismatched_keys"]
    parameters = dict(drawn.named_parameters())
    assert set(parameters) == {name for name, _ in loaded.named_parameters()}
    assert all(torch.equal(each, parameters[name]) for name, each in loaded.named_parameters())
    assert all(bool((each != 0).any()) for each in parameters.values()), "every parameter has an effect"
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 10_000_000


@pytest.mark.parametrize("model_type", ["qwen3_next", "gemma4_text", "deepseek_v32", "minimax"])
def test_tokens_of_a_twin_choose_most_of_its_experts(model_type: str) -> None:
    config = tiny_config(model_type)
    model = random_model(whole_class(config), config, seed=1)
    chosen: dict[str, set[int]] = {}
    for path, module in model.named_modules():
        if stacked_matrices(module):

            def note(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...], path: str = path) -> None:
                chosen.setdefault(path, set()).update(arguments[1].flatten().tolist())

            module.register_forward_pre_hook(note)
    ids = torch.randint(400, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert model(input_ids=ids).logits.isfinite().all()
    assert chosen and all(len(experts) >= EXPERTS // 2 for experts in chosen.values())


def test_a_twin_of_a_real_configuration_keeps_its_switches() -> None:
    config = AutoConfig.for_model(
        "qwen3_moe", norm_topk_prob=True, use_sliding_window=True, sliding_window=4096, num_hidden_layers=48,
        mlp_only_layers=[0, 1], hidden_act="gelu", tie_word_embeddings=True,
    )  # fmt: skip
    twin = shrink(config)
    assert (twin.norm_topk_prob, twin.hidden_act, twin.tie_word_embeddings) == (True, "gelu", True)
    assert twin.hidden_size == 64 and twin.num_hidden_layers <= 4 and twin.sliding_window == 16
    assert twin.mlp_only_layers, "a dense layer is one kind of layer"
