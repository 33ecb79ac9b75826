"""Tiny random models of every family, saved as hub checkpoints, and an adapter that feeds them to `build_model`."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.linear.matrices import Matrices
from zipmoe.store.format.entries import LayerEntry
from zipmoe.store.format.layout import ExpertSpec, TensorSpec

VOCABULARY = 160

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MLA = {
    "kv_lora_rank": 64,  # with less, oneDNN leaves an expansion of few rows to torch's own code, which sums otherwise
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
}
_GROUPED = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 48, "intermediate_size": 80}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 96,
        "intermediate_size": 96,
        "tie_word_embeddings": False,
    },
    "deepseek_v2": {**_GROUPED, **_MLA, "num_experts_per_tok": 3, "n_shared_experts": 2, "topk_method": "greedy"},
    "switch_transformers": {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 96,
        "num_layers": 4,
        "num_decoder_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 2,
        "num_heads": 4,
        "num_experts": 8,
        "expert_capacity": 3,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 48},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 96},
    "gpt_oss": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 48,
        "head_dim": 16,
        "sliding_window": 8,
        "num_hidden_layers": 4,
    },
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48},
    "glm4_moe": {
        **_GROUPED,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "head_dim": 16,
    },
    "deepseek_v3": {**_GROUPED, **_MLA, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "granitemoe": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 48,
        "logits_scaling": 4.0,
        "tie_word_embeddings": True,
    },
}

RECURRENT: Mapping[str, Mapping[str, Any]] = {
    "qwen3_5_moe_text": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 48,
        "head_dim": 16,
        "num_hidden_layers": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "granitemoehybrid": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 48,
        "shared_intermediate_size": 48,
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
    },
}
"""Families whose cache is more than keys and values. Their requests cannot share KV pages."""


def save_checkpoint(family: str, path: Path, *, seed: int = 0, **overrides: Any) -> None:
    """Saves a random model whose weights are large enough that tokens differ in their experts."""
    base = {} if family == "switch_transformers" else _DECODER
    config = AutoConfig.for_model(family, **{**base, **(FAMILIES | RECURRENT)[family], **overrides})
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(seed)
    model = auto_class.from_config(config, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.3 if "embed" in name or "shared.weight" in name else 0.12)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.1)
    model.save_pretrained(path)


def load_stock(path: Path) -> PreTrainedModel:
    """What every comparison is with: transformers alone, eager experts and eager attention."""
    config = AutoConfig.from_pretrained(path)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto_class.from_pretrained(
        path, dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager"
    ).eval()


class MemoryProvider(InProcessProvider):
    """Experts of a loaded stock model, in an order that tests choose."""

    def __init__(self, experts: Sequence[Sequence[Matrices]]) -> None:
        self._experts = experts
        self.arrange = list
        """From the ids that are asked for to those that are given."""
        self.requests: list[tuple[int, tuple[int, ...]]] = []
        self.closed = 0

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        self.requests.append((layer, tuple(rows)))
        try:
            for expert in self.arrange(list(rows)):
                lent = tuple(matrix.clone() for matrix in self._experts[layer][expert])
                yield Arrival(expert, lent)
                for matrix in lent:  # whoever keeps it longer than the contract allows computes NaN
                    matrix.fill_(torch.nan)
        finally:
            self.closed += 1


def split_stock(model: PreTrainedModel) -> tuple[list[LayerEntry], dict[str, torch.Tensor], MemoryProvider]:
    """Layers, dense weights and experts of a loaded stock model."""
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers: list[LayerEntry] = []
    provided = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleDict):
            names = ("wi.weight", "wo.weight")
            experts = [tuple(dense.pop(f"{path}.expert_{i}.{name}") for name in names) for i in range(len(module))]
        elif getattr(getattr(module, "gate_up_proj", None), "ndim", 0) == 3:
            names = ("gate_up_proj", "down_proj")
            packed = [dense.pop(f"{path}.{name}") for name in names]
            experts = list(zip(*packed, strict=True))
        else:
            continue
        spec = ExpertSpec(
            tuple(TensorSpec(name, *tensor.shape) for name, tensor in zip(names, experts[0], strict=True))
        )
        layers.append(LayerEntry(path, spec, len(experts)))
        provided.append([tuple(matrix.contiguous() for matrix in expert) for expert in experts])
    return layers, dense, MemoryProvider(provided)
