"""The table of GLM-4 MoE Lite (GLM-4.7-Flash), which llama.cpp computes as its deepseek2."""

from __future__ import annotations

from typing import Final

from benchmarks.peers.systems.conversion.architecture import (
    ATTENTION,
    COMMON,
    DENSE,
    ROUTED,
    WHOLE,
    Architecture,
    Config,
    TensorPlace,
    rope_base,
    shared_expert,
)
from benchmarks.peers.systems.conversion.changes import expanded_keys, expanded_values
from zipmoe.errors import UnsupportedModel

SIGMOID: Final = 2
"""llama.cpp's number of the gate's function."""


def _leading_dense_layers(config: Config) -> int:
    types = list(config["mlp_layer_types"])
    count = types.count("dense")
    if types[:count] != ["dense"] * count:
        raise UnsupportedModel("llama.cpp computes deepseek2 with its dense layers first, here they are not")
    return count


GLM4_MOE_LITE: Final = Architecture(
    "deepseek2",
    WHOLE,
    {
        "input_layernorm.weight": ATTENTION["input_layernorm.weight"],
        "self_attn.q_a_proj.weight": "attn_q_a.weight",
        "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
        "self_attn.q_b_proj.weight": "attn_q_b.weight",
        "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
        "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
        "self_attn.kv_b_proj.weight": (
            TensorPlace("attn_k_b.weight", expanded_keys),
            TensorPlace("attn_v_b.weight", expanded_values),
        ),
        "self_attn.o_proj.weight": ATTENTION["self_attn.o_proj.weight"],
        "post_attention_layernorm.weight": "ffn_norm.weight",
        **DENSE,
        **ROUTED,
        "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
        **shared_expert("shared_experts"),
    },
    {
        **COMMON,
        "feed_forward_length": "intermediate_size",
        "leading_dense_block_count": _leading_dense_layers,
        # Latents are the keys and the values of one head for all; a head's own sizes have keys of their own.
        "attention.head_count_kv": lambda _: 1,
        "attention.q_lora_rank": "q_lora_rank",
        "attention.kv_lora_rank": "kv_lora_rank",
        "attention.key_length": lambda config: config["kv_lora_rank"] + config["qk_rope_head_dim"],
        "attention.value_length": "kv_lora_rank",
        "attention.key_length_mla": lambda config: config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        "attention.value_length_mla": "v_head_dim",
        "rope.dimension_count": "qk_rope_head_dim",
        "rope.freq_base": rope_base(),
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_shared_count": "n_shared_experts",
        "expert_weights_scale": lambda config: float(config["routed_scaling_factor"]),
        "expert_weights_norm": "norm_topk_prob",
        "expert_gating_func": lambda _: SIGMOID,
    },
    fixed={"hidden_act": "silu", "rope_interleave": True, "n_group": 1, "topk_group": 1},
)
