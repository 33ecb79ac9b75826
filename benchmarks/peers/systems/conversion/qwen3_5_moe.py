"""The table of Qwen3.5-MoE, text only: linear attention in most layers, full attention with a gate in the others."""

from __future__ import annotations

from typing import Final

from benchmarks.peers.systems.conversion.architecture import (
    ATTENTION,
    COMMON,
    ROUTED,
    WHOLE,
    Architecture,
    Config,
    TensorPlace,
    rope,
    rope_base,
    shared_expert,
)
from benchmarks.peers.systems.conversion.changes import (
    both,
    decay,
    one_channel,
    one_row,
    plus_one,
    value_heads_tiled,
)
from zipmoe.errors import UnsupportedModel

_VALUE_DIM: Final = "linear_value_head_dim"
_SECTIONS: Final = [11, 11, 10, 0]
"""Pairs that turn with the position in time, height, width; in text the three positions are one."""


def _state_size(config: Config) -> int:
    if config["linear_key_head_dim"] != config[_VALUE_DIM]:
        raise UnsupportedModel("llama.cpp computes qwen35moe with keys and values of one size, here they differ")
    return int(config["linear_key_head_dim"])


def _norm(name: str) -> TensorPlace:
    return TensorPlace(name, plus_one, fp32=True)


QWEN3_5_MOE: Final = Architecture(
    "qwen35moe",
    {**WHOLE, "model.norm.weight": _norm("output_norm.weight")},
    {
        **ATTENTION,
        "input_layernorm.weight": _norm("attn_norm.weight"),
        "post_attention_layernorm.weight": _norm("post_attention_norm.weight"),
        "self_attn.q_norm.weight": _norm("attn_q_norm.weight"),
        "self_attn.k_norm.weight": _norm("attn_k_norm.weight"),
        "linear_attn.in_proj_qkv.weight": TensorPlace(
            "attn_qkv.weight", value_heads_tiled(0, _VALUE_DIM, keys_before=True)
        ),
        "linear_attn.in_proj_z.weight": TensorPlace("attn_gate.weight", value_heads_tiled(0, _VALUE_DIM)),
        "linear_attn.in_proj_a.weight": TensorPlace("ssm_alpha.weight", value_heads_tiled(0)),
        "linear_attn.in_proj_b.weight": TensorPlace("ssm_beta.weight", value_heads_tiled(0)),
        "linear_attn.conv1d.weight": TensorPlace(
            "ssm_conv1d.weight", both(one_channel, value_heads_tiled(0, _VALUE_DIM, keys_before=True)), fp32=True
        ),
        "linear_attn.A_log": TensorPlace("ssm_a", both(decay, value_heads_tiled(0)), fp32=True),
        "linear_attn.dt_bias": TensorPlace("ssm_dt.bias", value_heads_tiled(0)),
        "linear_attn.norm.weight": "ssm_norm.weight",
        "linear_attn.out_proj.weight": TensorPlace("ssm_out.weight", value_heads_tiled(1, _VALUE_DIM)),
        **ROUTED,
        **shared_expert("shared_expert"),
        "mlp.shared_expert_gate.weight": TensorPlace("ffn_gate_inp_shexp.weight", one_row, fp32=True),
    },
    {
        **COMMON,
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.value_length": "head_dim",
        "attention.recurrent_layers": lambda config: [each == "linear_attention" for each in config["layer_types"]],
        "rope.freq_base": rope_base(),
        "rope.dimension_count": lambda config: int(config["head_dim"] * rope(config)["partial_rotary_factor"]),
        "rope.dimension_sections": lambda _: _SECTIONS,
        "ssm.conv_kernel": "linear_conv_kernel_dim",
        "ssm.state_size": _state_size,
        "ssm.group_count": "linear_num_key_heads",
        "ssm.time_step_rank": "linear_num_value_heads",
        "ssm.inner_size": lambda config: config[_VALUE_DIM] * config["linear_num_value_heads"],
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    },
    fixed={"hidden_act": "silu"},
)
