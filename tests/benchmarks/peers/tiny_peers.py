"""Tiny checkpoints of the model types that are converted to GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from zipmoe.model.families.random_weights import random_model
from zipmoe.model.stock.model_class import whole_class

VOCABULARY = 512

_DECODER = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
_ROUTED = {
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 48,
}
_GEMMA4 = {
    **_DECODER,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "hidden_size_per_layer_input": 0,
    "sliding_window": 16,
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
}

TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "qwen2_moe": ("qwen2_moe", {**_DECODER, **_ROUTED, "num_hidden_layers": 3, "num_key_value_heads": 2}),
    "glm4_moe_lite": (
        "glm4_moe_lite",
        {
            **_DECODER,
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "kv_lora_rank": 32,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 32,
        },
    ),
    "gemma4": ("gemma4_text", _GEMMA4),
    "gemma4, keys are values": (
        "gemma4_text",
        {**_GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "final_logit_softcapping": 30.0},
    ),
    "qwen3_5_moe": (
        "qwen3_5_moe_text",
        {
            **_DECODER,
            **_ROUTED,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
    ),
}
"""Model type and fields by name."""


def save_tiny(name: str, path: Path, *, calm: bool = False, **fields: Any) -> None:
    """Saves a random model.

    Args:
        name: one of `TINY`.
        path: a directory.
        calm: whether no small difference becomes a large one: each token uses every expert, and attention is soft.
        fields: further fields of the configuration.
    """
    model_type, tiny = TINY[name]
    config = AutoConfig.for_model(model_type, **{**tiny, **fields})
    if calm:
        for chosen in ("top_k_experts", "num_experts_per_tok"):
            if chosen in tiny:
                setattr(config, chosen, 8)
    model = random_model(whole_class(config), config, 0)
    if calm:
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key.endswith("q_norm.weight"):
                    parameter.mul_(0.4)
    model.save_pretrained(path)
