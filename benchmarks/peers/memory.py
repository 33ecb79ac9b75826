"""Memory that every system needs for the same things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kv_bytes(config: Mapping[str, Any], tokens: int) -> int:
    """Bytes of keys and values of so many tokens, or of the latent that stands for them, in bf16."""
    if "kv_lora_rank" in config:
        width = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        width = 2 * config.get("num_key_value_heads", heads) * head_dim
    return int(2 * width * config["num_hidden_layers"] * tokens)
