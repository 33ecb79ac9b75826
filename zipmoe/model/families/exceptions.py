"""Model types whose default configuration is of no real model, and those that the general rules of sizes do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zipmoe.model.families.layers import Fields

_GEMMA4: Mapping[str, Any] = {
    "enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704,
    "hidden_size_per_layer_input": 0,
}  # fmt: skip
_QWEN4: Mapping[str, Any] = {
    "indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 128, "indexer_budget": 2048,
    "indexer_compress_ratio": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25},
}  # fmt: skip

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "dbrx": {
        "d_model": 6144, "n_heads": 48,
        "attn_config": {"kv_n_heads": 8, "rope_theta": 500000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 10752, "hidden_size": 6144, "moe_num_experts": 16, "moe_top_k": 4},
    },
    "deepseek_v2": {"num_experts_per_tok": 6, "first_k_dense_replace": 1},
    "deepseek_ocr2": {
        "text_config": {
            "mlp_layer_types": ["dense"] + ["sparse"] * 11, "num_hidden_layers": 12, "num_experts_per_tok": 6,
            "n_group": 1, "topk_group": 1,
        }
    },
    "dots1": {
        "n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
    "ernie4_5_vl_moe": {
        "text_config": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [22, 22, 20]}
        }
    },
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4,
    "glm4v_moe": {
        "text_config": {
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
                "mrope_section": [8, 12, 12],
            },
            "head_dim": 128,
        }
    },
    "granitemoehybrid": {
        "layer_types": (["linear_attention"] * 5 + ["full_attention"] + ["linear_attention"] * 4) * 4,
        "num_hidden_layers": 40,
    },
    "hunyuan_v1_moe": {"num_experts": 64, "moe_topk": 8, "head_dim": 128},
    "lfm2_moe": {
        "layer_types": ["conv", "conv", "full_attention", "conv", "conv", "conv"] * 4, "num_hidden_layers": 24,
        "num_dense_layers": 2,
    },
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 151652, "vision_end_token_id": 151653},
    "step3p7": {"text_config": {"sliding_window": 512}},
    "switch_transformers": {"decoder_start_token_id": 0},
}  # fmt: skip
"""Fields of the default configuration of a type, for types whose defaults describe no model that exists."""


def _jamba(tiny: Fields, _: Mapping[str, Any]) -> None:
    tiny.update(num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1)


def _granitemoehybrid(tiny: Fields, _: Mapping[str, Any]) -> None:
    tiny["mamba_d_head"] = tiny["mamba_expand"] * tiny["hidden_size"] // tiny["mamba_n_heads"]


def _qwen4(tiny: Fields, _: Mapping[str, Any]) -> None:
    tiny.update(indexer_compress_ratio=4, indexer_budget=16, ngram_vocab_size_base=512, split_ngram_parts=8)


def _switch(tiny: Fields, fields: Mapping[str, Any]) -> None:
    """Keeps four layers in each half, every other one sparse, if the real model is sparse."""
    for half, name in (("encoder", "num_layers"), ("decoder", "num_decoder_layers")):
        tiny[name] = 4
        tiny[f"num_sparse_{half}_layers"] = min(2, fields[f"num_sparse_{half}_layers"])
        tiny.pop(f"{half}_sparse_step", None)


EXCEPTIONS: Mapping[str, Callable[[Fields, Mapping[str, Any]], None]] = {
    "granitemoehybrid": _granitemoehybrid,
    "jamba": _jamba,
    "qwen4_exp_text": _qwen4,
    "switch_transformers": _switch,
}
"""Changes of the tiny fields, given the real ones, by model type of the configuration or of the part."""
