"""Makes the sizes of a configuration tiny, by the names that configurations of transformers give their sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from zipmoe.model.families.layers import LEAST_LAYERS, Fields, cut_layers

HIDDEN = 64
VOCABULARY = 512
EXPERTS = 8
WINDOW = 16
_HEADS = 4
_DENSE_INTERMEDIATE = 96
_EXPERT_INTERMEDIATE = 48
_LEAST_CONTEXT = 1024
_ORIGINAL_CONTEXT = 16

Rule = Callable[[int], int]


def _eighth(size: int) -> int:
    """128 becomes 16. Sums and ratios of head sizes stay as they are."""
    return max(8, -(-size // 32) * 4) if size else 0


def _sixteenth(size: int) -> int:
    return max(min(size, 16), size // 128 * 8)


def _heads(count: int) -> int:
    return min(count, _HEADS)


def _window(size: int) -> int:
    return WINDOW + size % 2 if size else size  # 513 stands for 512 and the token itself


def _fixed(size: int) -> Rule:
    return lambda old: size if old else old


def _most(size: int) -> Rule:
    return lambda old: min(old, size)


RULES: tuple[tuple[re.Pattern[str], Rule], ...] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r"(text_|out_|thinker_|projector_|projection_|vision_|audio_)?hidden_(size|dim)", _fixed(HIDDEN)),
        (
            (
                r"d_model|output_dim|projector_(in|out)put_dim|adapter_(in_dim|out_dim|input_size)|ple_embed_dim|"
                r"vision_output_dim|projection_hidden_dim|decoder_dim|output_channels"
            ),
            _fixed(HIDDEN),
        ),
        (r"moe_hidden_size|moe_latent_size|hidden_size_per_layer_input", _fixed(HIDDEN // 2)),
        (r"router_hidden_size|downsample_hidden_size", _fixed(16)),
        (r"moe_intermediate_size|expert_ffn_hidden_size", _fixed(_EXPERT_INTERMEDIATE)),
        (
            r".*intermediate_size(_mlp)?|d_ff|ffn_hidden_size|(en|de)coder_ffn_dim|share_expert_dim|mlp_dim",
            _fixed(_DENSE_INTERMEDIATE),
        ),
        (
            (
                r"(swa_|v_|qk_nope_|qk_rope_|index(er)?_|linear(_key|_value)?_|global_)?head_dim|d_kv|kv_channels|rotary_dim|"
                r"mamba_(d_)?head(_dim)?"
            ),
            _eighth,
        ),
        (r"(q|kv|o)_lora_rank|gated_norm_rank|hc_lowrank", _sixteenth),
        (
            (
                r"num_attention_heads|n_heads|num_heads|(swa_|num_sliding_)num_attention_heads|"
                r"num_sliding_attention_heads|(en|de)coder_attention_heads|index(er)?_n_heads|"
                r"linear_num_(value_)?heads|swa_num_attention_heads"
            ),
            _heads,
        ),
        (r"linear_num_key_heads", _most(2)),
        (r"(num|n)_(routed_|local_)?experts|moe_num_experts", _most(EXPERTS)),
        (r"zero_expert_num", _most(EXPERTS // 2)),
        (r"num_experts_per_tok(en)?|moe_k|moe_top_?k|top_k_experts", _most(4)),
        (r"(sliding_window|attention_chunk_size|sliding_window_size|floor_scale|rel_extent)", _window),
        (r"index_topk|indexer_budget", _most(WINDOW)),
        (r"index_topk_blocks", _most(3)),
        (r"index_block_size", _most(8)),
        (r"index_kpool", _most(4)),
        (r"block_size|(mamba_)?chunk_size", _most(WINDOW)),
        (r"mamba_d_state|ssm_state_size", _most(16)),
        (r"mamba_n_heads|mamba_num_heads", _fixed(8)),
        (r"mamba_dt_rank", _fixed(4)),
        (r"mamba_n_groups|n_groups|o_groups", _most(2)),
        (r"vocab_size|vocab_size_per_layer_input|codebook_size", _most(VOCABULARY)),
        (r"unpadded_vocab_size", _most(VOCABULARY - 12)),
        (r"expert_capacity", _most(EXPERTS * 8)),
    )
)

_DERIVED = "qk_head_dim"
_HEAD_PAIRS = (
    ("num_key_value_heads", "num_attention_heads"),
    ("swa_num_key_value_heads", "swa_num_attention_heads"),
    ("indexer_kv_heads", "indexer_n_heads"),
    ("kv_n_heads", "n_heads"),
)


def tiny_fields(fields: Mapping[str, Any]) -> Fields:
    """Makes the fields of one configuration, without its parts, tiny.

    Args:
        fields: all fields by name, as `constructor_fields` gives them.

    Returns:
        The fields to construct the tiny configuration from.
    """
    tiny = {name: value for name, value in fields.items() if name != _DERIVED}
    tiny.update(cut_layers(tiny, LEAST_LAYERS))
    _shrink_sizes(tiny)
    for overrides in (tiny.get("per_layer_config") or {}).values():
        _shrink_sizes(overrides)
    _share_heads(tiny, fields)
    _fit_groups(tiny)
    _fit_context(tiny)
    _fit_sections(tiny)
    return tiny


def _shrink_sizes(fields: Fields) -> None:
    for name, value in fields.items():
        for pattern, rule in RULES:
            if pattern.fullmatch(name) or pattern.fullmatch(name.removesuffix("_per_layer")):
                if isinstance(value, int) and not isinstance(value, bool):
                    fields[name] = rule(value)
                elif isinstance(value, list) and all(isinstance(item, int) for item in value):
                    fields[name] = [rule(item) for item in value]
                break


def _share_heads(tiny: Fields, fields: Mapping[str, Any]) -> None:
    """Keeps how many heads of queries share a head of keys: one, some or all."""
    for keys, heads in _HEAD_PAIRS:
        if isinstance(fields.get(keys), int):
            tiny[keys] = _key_heads(fields[keys], fields.get(heads) or fields[keys], tiny.get(heads) or _HEADS)
    overrides = (fields.get("per_layer_config") or {}, tiny.get("per_layer_config") or {})
    for real, changed in zip(*(each.values() for each in overrides), strict=False):
        if (old := real.get("num_key_value_heads")) is not None:
            old_heads = real.get("num_attention_heads") or fields["num_attention_heads"]
            new_heads = changed.get("num_attention_heads") or tiny["num_attention_heads"]
            changed["num_key_value_heads"] = _key_heads(old, old_heads, new_heads)


def _key_heads(old: int, old_heads: int, new_heads: int) -> int:
    if old <= 1:
        return old
    return new_heads if old == old_heads else max(1, new_heads // 2)


def _fit_groups(tiny: Fields) -> None:
    groups_name = "n_group" if "n_group" in tiny else "num_expert_group"
    groups = tiny.get(groups_name)
    if not groups or groups == 1:
        return
    chosen = min(tiny["topk_group"], 2)
    tiny.update({groups_name: 4, "topk_group": chosen})
    for name in ("num_experts_per_tok", "num_experts_per_token"):
        if tiny.get(name):
            tiny[name] = min(tiny[name], chosen * (EXPERTS // 4) - 1)


def _fit_context(tiny: Fields) -> None:
    context = _LEAST_CONTEXT
    rope = tiny.get("rope_parameters")
    if isinstance(rope, dict):
        rope = {name: dict(value) if isinstance(value, dict) else value for name, value in rope.items()}
        tiny["rope_parameters"] = rope
        for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
            if part.get("original_max_position_embeddings"):
                part["original_max_position_embeddings"] = _ORIGINAL_CONTEXT
                context = max(context, int(_ORIGINAL_CONTEXT * part.get("factor", 1)))
            if part.get("max_position_embeddings"):
                part["max_position_embeddings"] = context
    for name in ("max_position_embeddings", "model_max_length", "max_seq_len", "max_source_positions"):
        if isinstance(tiny.get(name), int):
            tiny[name] = context
    if isinstance(tiny.get("original_max_position_embeddings"), int):
        tiny["original_max_position_embeddings"] = _ORIGINAL_CONTEXT


def _fit_sections(tiny: Fields) -> None:
    """Divides the sections of a rotary embedding with several positions as the heads have been divided."""
    rope = tiny.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        sections = part.get("mrope_section")
        if isinstance(sections, list) and sections:
            head = _head_size(tiny)
            factor = part.get("partial_rotary_factor") or tiny.get("partial_rotary_factor") or 1
            half = int(head * float(factor)) // 2
            each = [max(1, round(section * half / sum(sections))) for section in sections]
            each[-1] += half - sum(each)
            part["mrope_section"] = each


def _head_size(fields: Mapping[str, Any]) -> int:
    return int(fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"])
