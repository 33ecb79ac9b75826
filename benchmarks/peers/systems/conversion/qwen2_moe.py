"""The table of Qwen2-MoE."""

from __future__ import annotations

from typing import Final

from benchmarks.peers.systems.conversion.architecture import (
    ATTENTION,
    COMMON,
    ROUTED,
    WHOLE,
    Architecture,
    TensorPlace,
    rope_base,
    shared_expert,
)
from benchmarks.peers.systems.conversion.changes import one_row

QWEN2_MOE: Final = Architecture(
    "qwen2moe",
    WHOLE,
    {
        **ATTENTION,
        "self_attn.q_proj.bias": "attn_q.bias",
        "self_attn.k_proj.bias": "attn_k.bias",
        "self_attn.v_proj.bias": "attn_v.bias",
        "post_attention_layernorm.weight": "ffn_norm.weight",
        **ROUTED,
        **shared_expert("shared_expert"),
        "mlp.shared_expert_gate.weight": TensorPlace("ffn_gate_inp_shexp.weight", one_row, fp32=True),
    },
    {
        **COMMON,
        "feed_forward_length": "intermediate_size",
        "attention.head_count_kv": "num_key_value_heads",
        "rope.freq_base": rope_base(),
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    },
    fixed={"hidden_act": "silu", "norm_topk_prob": False, "use_sliding_window": False, "tie_word_embeddings": False},
)
