"""Configurations of synthetic checkpoints: a real model of every family, and a tiny model of the same structure.

The real values are those of config.json of the named model on the hub. A synthetic checkpoint differs from the real
model in the sizes that the caller sets, and in the ids of special tokens, which are those of the synthetic tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = dict[str, Any]

_YARN = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
_YARN_V2 = {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}
_YARN_V3 = {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}
_YARN_GPT_OSS = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip

REAL: Mapping[str, Config] = {
    # Qwen1.5-MoE-A2.7B
    "qwen2_moe": {
        "architectures": ["Qwen2MoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts": 60,
        "num_experts_per_tok": 4, "norm_topk_prob": False, "decoder_sparse_step": 1, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 8192, "max_window_layers": 21,
        "sliding_window": 32768, "use_sliding_window": False, "rope_theta": 1000000.0, "rms_norm_eps": 1e-06,
        "hidden_act": "silu", "tie_word_embeddings": False, "vocab_size": 151936,
    },
    # DeepSeek-V2-Lite
    "deepseek_v2": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_deepseek.DeepseekV2Config",
            "AutoModel": "modeling_deepseek.DeepseekV2Model",
            "AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM",
        },
        "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "moe_layer_freq": 1,
        "norm_topk_prob": False, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_method": "greedy",
        "n_group": 1, "topk_group": 1, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
        "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "max_position_embeddings": 163840, "rope_theta": 10000,
        "rope_scaling": _YARN_V2, "rms_norm_eps": 1e-06, "attention_bias": False, "hidden_act": "silu",
        "tie_word_embeddings": False, "vocab_size": 102400,
    },
    # switch-large-128
    "switch_transformers": {
        "architectures": ["SwitchTransformersForConditionalGeneration"], "d_model": 1024, "d_kv": 64, "d_ff": 4096,
        "num_layers": 24, "num_decoder_layers": 24, "num_sparse_encoder_layers": 12, "num_sparse_decoder_layers": 12,
        "num_heads": 16, "num_experts": 128, "expert_capacity": 64, "router_bias": False, "router_dtype": "float32",
        "router_ignore_padding_tokens": False, "router_jitter_noise": 0.01, "dense_act_fn": "relu",
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-06, "is_encoder_decoder": True, "decoder_start_token_id": 0, "pad_token_id": 0,
        "tie_word_embeddings": True, "vocab_size": 32128,
    },
    # Qwen3-30B-A3B
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 40960, "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06, "attention_bias": False, "hidden_act": "silu", "tie_word_embeddings": False,
        "vocab_size": 151936,
    },
    # OLMoE-1B-7B-0924
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 1024, "num_experts": 64,
        "num_experts_per_tok": 8, "norm_topk_prob": False, "num_hidden_layers": 16, "num_attention_heads": 16,
        "num_key_value_heads": 16, "max_position_embeddings": 4096, "rope_theta": 10000.0, "rms_norm_eps": 1e-05,
        "clip_qkv": None, "attention_bias": False, "hidden_act": "silu", "pad_token_id": 1,
        "tie_word_embeddings": False, "vocab_size": 50304,
    },
    # Mixtral-8x7B-v0.1
    "mixtral": {
        "architectures": ["MixtralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": None, "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-05, "hidden_act": "silu", "tie_word_embeddings": False, "vocab_size": 32000,
    },
    # gpt-oss-20b, its experts in bf16
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"], "hidden_size": 2880, "intermediate_size": 2880,
        "num_local_experts": 32, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "attention_bias": True, "sliding_window": 128, "swiglu_limit": 7.0,
        "max_position_embeddings": 131072, "initial_context_length": 4096, "rope_theta": 150000,
        "rope_scaling": _YARN_GPT_OSS, "rms_norm_eps": 1e-05, "hidden_act": "silu", "pad_token_id": 199999,
        "tie_word_embeddings": False, "vocab_size": 201088,
    },
    # Phi-3.5-MoE-instruct; its longrope factors are left out, so positions are those of plain rotary embedding
    "phimoe": {
        "architectures": ["PhiMoEForCausalLM"], "hidden_size": 4096, "intermediate_size": 6400,
        "num_local_experts": 16, "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 131072, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-05, "attention_bias": True, "lm_head_bias": True, "input_jitter_noise": 0.01,
        "router_jitter_noise": 0.01, "hidden_act": "silu", "tie_word_embeddings": False, "vocab_size": 32064,
    },
    # GLM-4.5-Air
    "glm4_moe": {
        "architectures": ["Glm4MoeForCausalLM"], "hidden_size": 4096, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "n_group": 1,
        "topk_group": 1, "num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8,
        "head_dim": 128, "partial_rotary_factor": 0.5, "max_position_embeddings": 131072, "rope_theta": 1000000,
        "rms_norm_eps": 1e-05, "attention_bias": True, "use_qk_norm": False, "hidden_act": "silu",
        "pad_token_id": 151329, "tie_word_embeddings": False, "vocab_size": 151552,
    },
    # DeepSeek-V3, converted to bf16
    "deepseek_v3": {
        "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "first_k_dense_replace": 3, "moe_layer_freq": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 8, "topk_group": 4, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 163840,
        "rope_theta": 10000, "rope_scaling": _YARN_V3, "rms_norm_eps": 1e-06,
        "attention_bias": False, "hidden_act": "silu", "tie_word_embeddings": False, "vocab_size": 129280,
    },
    # granite-3.0-1b-a400m-base
    "granitemoe": {
        "architectures": ["GraniteMoeForCausalLM"], "hidden_size": 1024, "intermediate_size": 512,
        "num_local_experts": 32, "num_experts_per_tok": 8, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 8, "max_position_embeddings": 4096, "rope_theta": 10000.0, "rms_norm_eps": 1e-06,
        "embedding_multiplier": 12.0, "logits_scaling": 6.0, "residual_multiplier": 0.22,
        "attention_multiplier": 0.015625, "attention_bias": False, "hidden_act": "silu", "pad_token_id": 0,
        "tie_word_embeddings": True, "vocab_size": 49155,
    },
}  # fmt: skip

FAMILIES = tuple(REAL)
"""The model types with a configuration here. The first three are the families of the paper."""

_TINY_DECODER = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 512, "vocab_size": 512,
}  # fmt: skip
_TINY_LATENT_ATTENTION = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "moe_intermediate_size": 48, "n_routed_experts": 8, "first_k_dense_replace": 1,
}  # fmt: skip

_TINY_CONTEXT = {"original_max_position_embeddings": 16}  # times the factor: the tiny max_position_embeddings

# Changes to REAL for a checkpoint of a few megabytes. 48 columns: not a multiple of 64 on purpose.
TINY: Mapping[str, Config] = {
    "qwen2_moe": {
        **_TINY_DECODER, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 96, "num_experts": 8,
        "num_key_value_heads": 4, "max_window_layers": 3,
    },
    "deepseek_v2": {
        **_TINY_DECODER, **_TINY_LATENT_ATTENTION, "rope_scaling": {**_YARN_V2, **_TINY_CONTEXT},
        "max_position_embeddings": 640,
    },
    "switch_transformers": {
        "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 4, "num_decoder_layers": 4,
        "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2, "num_heads": 4, "num_experts": 8,
        "vocab_size": 512,
    },
    "qwen3_moe": {**_TINY_DECODER, "moe_intermediate_size": 48, "num_experts": 8, "head_dim": 16},
    "olmoe": {**_TINY_DECODER, "intermediate_size": 48, "num_experts": 8},
    "mixtral": {**_TINY_DECODER, "intermediate_size": 48, "num_local_experts": 4},
    "gpt_oss": {
        **_TINY_DECODER, "intermediate_size": 48, "num_local_experts": 8, "head_dim": 16, "sliding_window": 16,
        "num_hidden_layers": 4, "rope_scaling": {**_YARN_GPT_OSS, **_TINY_CONTEXT},
    },
    "phimoe": {**_TINY_DECODER, "intermediate_size": 48, "num_local_experts": 4},
    "glm4_moe": {
        **_TINY_DECODER, "moe_intermediate_size": 48, "n_routed_experts": 8, "head_dim": 16,
    },
    "deepseek_v3": {
        **_TINY_DECODER, **_TINY_LATENT_ATTENTION, "q_lora_rank": 24, "n_group": 2, "topk_group": 1,
        "rope_scaling": {**_YARN_V3, **_TINY_CONTEXT}, "max_position_embeddings": 640,
    },
    "granitemoe": {**_TINY_DECODER, "intermediate_size": 48, "num_local_experts": 8},
}  # fmt: skip


def configuration(
    family: str, *, true_widths: bool, layers: int | None, vocab: int | None, overrides: Mapping[str, Any]
) -> Config:
    """Builds the configuration of a synthetic checkpoint.

    Args:
        family: a key of `REAL`.
        true_widths: whether sizes are those of the real model; otherwise they are tiny.
        layers: number of layers instead of the configuration's; for an encoder-decoder, the number in each half.
        vocab: vocabulary size instead of the configuration's.
        overrides: further values by name in config.json, applied last, such as the ids of special tokens.

    Returns:
        The content of config.json.
    """
    config = {"model_type": family, **REAL[family], **({} if true_widths else TINY[family])}
    if vocab is not None:
        config["vocab_size"] = vocab
    if layers is not None:
        config.update(_layer_counts(config, layers))
    config.update({"torch_dtype": "bfloat16", "use_cache": True, **overrides})
    return config


def _layer_counts(config: Config, layers: int) -> Config:
    if "num_layers" in config:  # Switch: every other layer is sparse, as in the original
        sparse = max(1, layers // 2)
        return {
            "num_layers": layers,
            "num_decoder_layers": layers,
            "num_sparse_encoder_layers": sparse,
            "num_sparse_decoder_layers": sparse,
        }
    counts = {"num_hidden_layers": layers}
    if "first_k_dense_replace" in config:  # at least one layer with experts stays
        counts["first_k_dense_replace"] = min(config["first_k_dense_replace"], layers - 1)
    return counts
