"""Model types whose default configuration has no experts, and those that the general rules of sizes do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zipmoe.model.families.layers import Fields

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 6, "first_k_dense_replace": 1},
    "dots1": {
        "n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
    "hunyuan_v1_moe": {"num_experts": 64, "moe_topk": 8},
    "gemma4_text": {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704},
}  # fmt: skip
"""Fields of the default configuration of a type, for types whose defaults describe no model that exists."""

EXCEPTIONS: Mapping[str, Callable[[Fields, Mapping[str, Any]], None]] = {}
"""Changes of the tiny fields, given the real ones, by model type of the configuration or of the part."""
