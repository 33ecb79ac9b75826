"""Computes the memory of a prompt's largest activations and of experts that stock's code computes from copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zipmoe.planning.kv_bytes import measured_sizes

SCORE_BYTES = 8
"""Bytes of one attention score while it is computed: bf16 as a product, fp32 in the softmax, bf16 again."""

SCORE_BLOCK_BYTES = 64 << 20
"""Bytes of attention scores that are computed at once. A prompt's heads are computed in groups of about this size."""

COPIED_EXPERT_BYTES = 64 << 20
"""Bytes of the experts that are copied together for stock's own code; one expert, if it is larger."""

UNDIVIDED_FAMILIES = frozenset({"gpt_oss"})
"""Model families with attention sinks per head. Their attention is computed for all heads at once."""

LENGTH_DEPENDENT_ROTARY = ("dynamic", "longrope")
"""Rotary frequencies that depend on the longest position of a pass, and so on the other requests of the pass."""

_HEADS = ("num_attention_heads", "num_heads", "n_heads", "encoder_attention_heads", "decoder_attention_heads")


def heads_together(heads: int, groups: int, rows: int, context: int) -> int:
    """Returns the query heads that attend at once, so that the scores take at most about `SCORE_BLOCK_BYTES`.

    Args:
        heads: query heads.
        groups: query heads that share a head of keys and values. These heads always attend together.
        rows: queries of one head.
        context: keys of one head.
    """
    affordable = SCORE_BLOCK_BYTES // max(1, SCORE_BYTES * rows * context)
    return min(heads, max(groups, affordable // groups * groups))


def workspace_bytes(config: Mapping[str, Any], prompt_tokens: int) -> int:
    """Returns the bytes of the largest activations of a prefill of `prompt_tokens` tokens.

    These are the eager attention scores and the hidden states. Models whose keys and values are in pages attend for a
    few heads at a time, all others for all heads at once.

    Args:
        config: configuration of the text model, as `zipmoe.planning.kv_bytes.text_part` gives it.
        prompt_tokens: length of the prompt.
    """
    heads = max(int(config.get(name) or 1) for name in _HEADS)
    hidden = int(config.get("hidden_size") or config.get("d_model") or 1)
    together = heads
    if _attends_in_parts(config):
        kv_heads = int(config.get("num_key_value_heads") or heads)
        together = heads_together(heads, heads // kv_heads, prompt_tokens, prompt_tokens)
    return SCORE_BYTES * together * prompt_tokens * prompt_tokens + 32 * hidden * prompt_tokens


def copied_expert_bytes(config: Mapping[str, Any], expert_bytes: int) -> int:
    """Returns the bytes of the copies that stock's own code computes from; 0 where experts are computed one by one.

    Args:
        config: as for `workspace_bytes`.
        expert_bytes: bytes of the largest recovered expert.
    """
    measured = measured_sizes(config)
    return max(COPIED_EXPERT_BYTES, expert_bytes) if measured is not None and measured.stock_experts else 0


def _attends_in_parts(config: Mapping[str, Any]) -> bool:
    """Whether attention is known to be computed for a few heads at a time.

    Sizes are measured for the store of every model whose cache is not that of pages, so they tell that it is not known.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rotary = rope.get("rope_type") or rope.get("type") if isinstance(rope, dict) else None
    return (
        measured_sizes(config) is None
        and not config.get("is_encoder_decoder")
        and config.get("model_type") not in UNDIVIDED_FAMILIES
        and rotary not in LENGTH_DEPENDENT_ROTARY
    )
