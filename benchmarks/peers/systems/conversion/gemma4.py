"""The table of Gemma 4, text only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.peers.systems.conversion.architecture import (
    ATTENTION,
    COMMON,
    DENSE,
    WHOLE,
    Architecture,
    Config,
    TensorPlace,
    rope,
    rope_base,
)

FULL, SLIDING = "full_attention", "sliding_attention"

NEVER_TURNED: Final = 1e30
"""Divides the frequency of the pairs that proportional rotary embedding leaves alone."""


def _of_layers(config: Config, name: str) -> list[int]:
    """Reads a field by layer: the layers that have another value are listed in `per_layer_config`."""
    other = {int(layer): fields for layer, fields in (config.get("per_layer_config") or {}).items()}
    return [other.get(layer, {}).get(name, config[name]) for layer in range(config["num_hidden_layers"])]


def _of_type(name: str, layer_type: str) -> Callable[[Config], int]:
    def value(config: Config) -> int:
        values = zip(_of_layers(config, name), config["layer_types"], strict=True)
        return next((each for each, found in values if found == layer_type), config[name])

    return value


def _frequency_factors(config: Config) -> Mapping[str, npt.NDArray[np.float32]]:
    """Makes the factors of the layers with full attention: only the first pairs of a head are turned."""
    pairs = _of_type("head_dim", FULL)(config) // 2
    turned = int(pairs * rope(config, FULL).get("partial_rotary_factor", 1.0))
    factors = np.full(pairs, NEVER_TURNED, np.float32)
    factors[:turned] = 1
    return {"rope_freqs.weight": factors}


GEMMA4: Final = Architecture(
    "gemma4",
    WHOLE,
    {
        **ATTENTION,
        "post_attention_layernorm.weight": "post_attention_norm.weight",
        "pre_feedforward_layernorm.weight": "ffn_norm.weight",
        **DENSE,
        "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
        "router.proj.weight": TensorPlace("ffn_gate_inp.weight", fp32=True),
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
        "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
        "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
        "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
        "experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
        "layer_scalar": "layer_output_scale.weight",
    },
    {
        **COMMON,
        "feed_forward_length": "intermediate_size",
        "embedding_length_per_layer_input": lambda config: config["hidden_size_per_layer_input"] or 0,
        "attention.head_count_kv": lambda config: _of_layers(config, "num_key_value_heads"),
        "attention.key_length": _of_type("head_dim", FULL),
        "attention.value_length": _of_type("head_dim", FULL),
        "attention.key_length_swa": _of_type("head_dim", SLIDING),
        "attention.value_length_swa": _of_type("head_dim", SLIDING),
        "attention.shared_kv_layers": "num_kv_shared_layers",
        "attention.sliding_window": "sliding_window",
        "attention.sliding_window_pattern": lambda config: [each == SLIDING for each in config["layer_types"]],
        "rope.dimension_count": _of_type("head_dim", FULL),
        "rope.dimension_count_swa": _of_type("head_dim", SLIDING),
        "rope.freq_base": rope_base(FULL),
        "rope.freq_base_swa": rope_base(SLIDING),
        "final_logit_softcapping": lambda config: float(config["final_logit_softcapping"] or 0),
        "expert_count": "num_experts",
        "expert_used_count": "top_k_experts",
    },
    fixed={
        "hidden_activation": "gelu_pytorch_tanh",
        "enable_moe_block": True,
        "use_double_wide_mlp": False,
        "use_bidirectional_attention": None,
    },
    added=_frequency_factors,
)
