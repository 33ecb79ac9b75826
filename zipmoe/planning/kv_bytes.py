"""Computes the memory of cached keys and values from config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from zipmoe.errors import PACK_ANEW, UnsupportedModel
from zipmoe.store.format.measured import MeasuredSizes

MEASURED = "zipmoe_measured"
"""Key under which a configuration carries its measured sizes; no key of a config.json."""

MTP_LAYERS = "zipmoe_mtp_layers"
"""Key under which it carries the layers for multi-token prediction that the store holds."""

KvForm = Literal["expanded", "latent"]
"""Form of the KV cache of multi-head latent attention. `expanded` caches keys and values in the form that attention
uses. `latent` caches the latents from which keys and values are expanded. Latents are several times smaller, but are
expanded again for every token."""

BYTES_A_NUMBER = 2


def text_part(config: Mapping[str, Any], measured: MeasuredSizes | None = None, mtp_layers: int = 0) -> dict[str, Any]:
    """Returns the configuration of the text model, from config.json, with what the manifest of a store adds.

    Args:
        config: content of config.json.
        measured: the sizes that were measured, if any.
        mtp_layers: layers for multi-token prediction that the store holds.
    """
    text = config.get("text_config")
    return {**config, **(text if isinstance(text, dict) else {}), MEASURED: measured, MTP_LAYERS: mtp_layers}


def measured_sizes(config: Mapping[str, Any]) -> MeasuredSizes | None:
    """Returns the measured sizes in the result of `text_part`; None if config.json tells them."""
    measured = config.get(MEASURED)
    return measured if isinstance(measured, MeasuredSizes) else None


def request_bytes(config: Mapping[str, Any]) -> int:
    """Returns the bytes of a request's cache that do not grow, from the result of `text_part`."""
    measured = measured_sizes(config)
    return 0 if measured is None else measured.request_bytes


def kv_bytes_per_token(config: Mapping[str, Any], form: KvForm = "expanded") -> int:
    """Returns the bytes of KV cache that one token of context takes over all layers, in bf16.

    Layers for multi-token prediction cache as the others do. A cached latent includes the rotary key that all heads
    share. T5-like models cache keys and values of the decoder's self-attention and cross-attention.

    Args:
        config: the model's config.json, as `text_part` gives it; measured sizes count before any formula.
        form: form of the KV cache; no effect without latent attention.

    Raises:
        UnsupportedModel: config.json has no number of layers or heads.
    """
    nbytes = _model_bytes(config, form)
    if not (mtp_layers := int(config.get(MTP_LAYERS, 0))):
        return nbytes
    return nbytes + -(-nbytes * mtp_layers // int(config["num_hidden_layers"]))


def _model_bytes(config: Mapping[str, Any], form: KvForm) -> int:
    if (measured := measured_sizes(config)) is None:
        return _told_bytes(config, form)
    # Stock's own cache was measured, which holds latents. The expanded form exists for the formula only.
    with suppress(UnsupportedModel):
        if _told_bytes(config, "latent") == measured.token_bytes:
            return _told_bytes(config, form)
    return measured.token_bytes


def _told_bytes(config: Mapping[str, Any], form: KvForm) -> int:
    try:
        if config.get("is_encoder_decoder"):
            layers = int(config.get("num_decoder_layers") or config.get("decoder_layers") or config["num_layers"])
            heads = int(config.get("num_heads") or config["decoder_attention_heads"])
            numbers = int(config.get("d_kv") or int(config["d_model"]) // heads)
            return layers * 4 * heads * numbers * BYTES_A_NUMBER
        return int(config["num_hidden_layers"]) * _numbers(config, form) * BYTES_A_NUMBER
    except KeyError as error:
        raise UnsupportedModel(
            f"config.json has no {error.args[0]}, so the KV cache cannot be sized",
            next_step=PACK_ANEW,
        ) from error


def _numbers(config: Mapping[str, Any], form: KvForm) -> int:
    """Returns the count of cached numbers of a token in a layer of a decoder-only model."""
    heads, rank = int(config["num_attention_heads"]), config.get("kv_lora_rank")
    if rank and form == "latent":
        return int(rank) + int(config["qk_rope_head_dim"])
    if rank:
        key_numbers = int(config["qk_nope_head_dim"]) + int(config["qk_rope_head_dim"])
        return heads * (key_numbers + int(config["v_head_dim"]))
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    return 2 * int(config.get("num_key_value_heads") or heads) * head_dim
