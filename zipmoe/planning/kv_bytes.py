"""What keys and values take in memory, from config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from zipmoe.errors import UnsupportedModel

KvForm = Literal["expanded", "latent"]
"""What is cached of multi-head latent attention: keys and values as they are attended to, or the latents that they are
expanded from, which are several times smaller and are expanded anew for every token."""

BYTES_A_NUMBER = 2


def kv_bytes_per_token(config: Mapping[str, Any], form: KvForm = "expanded") -> int:
    """Bytes of KV cache that one token of context takes over all layers, in bf16.

    A latent comes with the rotary key that heads share. T5-like models cache keys and values of the decoder's
    self-attention and cross-attention.

    Args:
        config: the model's config.json.
        form: what is cached; of no effect without latent attention.

    Raises:
        UnsupportedModel: config.json does not say how many layers or heads there are.
    """
    try:
        if config.get("is_encoder_decoder"):
            layers = int(config.get("num_decoder_layers") or config["num_layers"])
            return layers * 4 * int(config["num_heads"]) * int(config["d_kv"]) * BYTES_A_NUMBER
        return int(config["num_hidden_layers"]) * _numbers(config, form) * BYTES_A_NUMBER
    except KeyError as error:
        raise UnsupportedModel(f"config.json has no {error.args[0]}, so the KV cache cannot be sized") from error


def _numbers(config: Mapping[str, Any], form: KvForm) -> int:
    """Of one token in one layer of a decoder-only model."""
    heads, rank = int(config["num_attention_heads"]), config.get("kv_lora_rank")
    if rank and form == "latent":
        return int(rank) + int(config["qk_rope_head_dim"])
    if rank:
        key_numbers = int(config["qk_nope_head_dim"]) + int(config["qk_rope_head_dim"])
        return heads * (key_numbers + int(config["v_head_dim"]))
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    return 2 * int(config.get("num_key_value_heads") or heads) * head_dim
