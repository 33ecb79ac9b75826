"""The tables: what becomes of each tensor, and which configurations are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers.systems.conversion.architecture import Values
from benchmarks.peers.systems.conversion.architectures import ARCHITECTURES, architecture_of
from benchmarks.peers.systems.conversion.changes import value_heads_tiled
from benchmarks.peers.systems.gguf_file import GgufTensor, config_of, tensors_of
from tests.benchmarks.peers.tiny_peers import TINY, save_tiny
from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.checkpoint import Checkpoint, open_checkpoint


def converted(path: Path) -> tuple[Checkpoint, dict[str, GgufTensor]]:
    checkpoint = open_checkpoint(path)
    tensors = tensors_of(checkpoint, architecture_of(checkpoint.config["model_type"]), config_of(path))
    return checkpoint, {tensor.name: tensor for tensor in tensors}


def stored(checkpoint: Checkpoint, key: str) -> Values:
    """The raw bits of a tensor of the checkpoint."""
    entry = checkpoint.tensors[key]
    return np.fromfile(entry.path, np.uint16, entry.nbytes // 2, offset=entry.offset).reshape(entry.shape)


def wide(bits: Values) -> Values:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def values(tensor: GgufTensor) -> Values:
    joined: Values = np.concatenate([piece.ravel() for piece in tensor.pieces()]).reshape(tensor.shape)
    assert joined.nbytes == tensor.nbytes and joined.dtype == (np.float32 if tensor.fp32 else np.uint16)
    return joined


@pytest.mark.parametrize("name", TINY)
def test_every_value_of_a_checkpoint_is_written_once_in_a_shape_that_holds_it(name: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path)
    checkpoint, tensors = converted(tmp_path)
    added = architecture_of(checkpoint.config["model_type"]).added(config_of(tmp_path))
    written = sum(values(tensor).size for tensor in tensors.values() if tensor.name not in added)
    assert written == sum(int(np.prod(entry.shape)) for entry in checkpoint.tensors.values())


@pytest.mark.parametrize("name", TINY)
def test_bf16_values_are_rearranged_and_never_computed(name: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path)
    checkpoint, tensors = converted(tmp_path)
    kept = np.concatenate([values(tensor).ravel() for tensor in tensors.values() if not tensor.fp32])
    matrices = [stored(checkpoint, key).ravel() for key, entry in checkpoint.tensors.items() if len(entry.shape) > 1]
    counts, available = (np.bincount(each, minlength=1 << 16) for each in (kept, np.concatenate(matrices)))
    assert kept.size
    assert (counts <= available).all()  # of every bit pattern, also of those that the checkpoint does not have


def test_experts_of_each_form_of_checkpoint_are_stacked_in_order(tmp_path: Path) -> None:
    for name, key, expert in (
        ("qwen3_5_moe", "mlp.experts.{}.down_proj.weight", 5),
        ("gemma4", "experts.down_proj", 5),
    ):
        save_tiny(name, tmp_path / name)
        checkpoint, tensors = converted(tmp_path / name)
        source = stored(checkpoint, "model.layers.2." + key.format(expert))
        down = values(tensors["blk.2.ffn_down_exps.weight"])
        assert down.shape == (8, 64, 32)
        assert np.array_equal(down[expert], source[expert] if source.ndim == 3 else source)


def test_the_expansion_of_latents_is_divided_into_transposed_keys_and_values(tmp_path: Path) -> None:
    save_tiny("glm4_moe_lite", tmp_path)
    checkpoint, tensors = converted(tmp_path)
    expansion = stored(checkpoint, "model.layers.1.self_attn.kv_b_proj.weight").reshape(4, 16 + 32, 32)
    keys, heads_values = values(tensors["blk.1.attn_k_b.weight"]), values(tensors["blk.1.attn_v_b.weight"])
    for head in range(4):
        assert np.array_equal(keys[head].T, expansion[head, :16])
        assert np.array_equal(heads_values[head], expansion[head, 16:])


def test_value_head_i_comes_to_belong_to_key_head_i_modulo_key_heads() -> None:
    config = {"linear_num_key_heads": 3, "linear_num_value_heads": 6, "linear_key_head_dim": 2, "size": 4}
    stock = np.repeat(np.arange(6), 4)  # the value head of each row; two follow each other for one key head
    tiled = value_heads_tiled(0, "size")(stock, config).reshape(6, 4)
    assert (tiled == tiled[:, :1]).all() and sorted(tiled[:, 0]) == list(range(6))
    assert [head // 2 for head in tiled[:, 0]] == [0, 1, 2, 0, 1, 2]
    queries_and_keys = np.arange(100, 100 + 2 * 3 * 2)
    together = value_heads_tiled(0, "size", keys_before=True)(np.concatenate([queries_and_keys, stock]), config)
    assert np.array_equal(together, np.concatenate([queries_and_keys, tiled.ravel()]))


def test_norms_and_decay_of_linear_attention_are_what_stock_computes_in_fp32(tmp_path: Path) -> None:
    import torch

    save_tiny("qwen3_5_moe", tmp_path)
    checkpoint, tensors = converted(tmp_path)
    for key, name in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "post_attention_norm")):
        weight = wide(stored(checkpoint, f"model.layers.0.{key}.weight"))
        assert np.array_equal(values(tensors[f"blk.0.{name}.weight"]), 1 + weight)
    gated = wide(stored(checkpoint, "model.layers.0.linear_attn.norm.weight"))
    assert np.array_equal(values(tensors["blk.0.ssm_norm.weight"]), gated)
    logarithms = torch.from_numpy(wide(stored(checkpoint, "model.layers.0.linear_attn.A_log")))
    rates = values(tensors["blk.0.ssm_a"])[[0, 2, 1, 3]]  # two value heads for each of two key heads
    np.testing.assert_array_almost_equal_nulp(rates, -logarithms.exp().numpy(), nulp=2)


def test_sizes_of_gemma_4_are_told_layer_by_layer_and_few_pairs_of_full_attention_are_turned(tmp_path: Path) -> None:
    save_tiny("gemma4, keys are values", tmp_path)
    _, tensors = converted(tmp_path)
    config = config_of(tmp_path)
    metadata = ARCHITECTURES["gemma4_text"].metadata_of(config)
    assert metadata["attention.head_count_kv"] == [2, 2, 2, 2, 2, 1]
    assert metadata["attention.sliding_window_pattern"] == [True] * 5 + [False]
    assert (metadata["attention.key_length"], metadata["attention.key_length_swa"]) == (64, 32)
    assert "blk.5.attn_v.weight" not in tensors and "blk.4.attn_v.weight" in tensors
    factors = values(tensors["rope_freqs.weight"])
    assert factors.tolist() == [1.0] * 8 + [np.float32(1e30)] * 24


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob False, this is True"),
        ("glm4_moe_lite", {"rope_interleave": False}, "rope_interleave True"),
        ("glm4_moe_lite", {"mlp_layer_types": ["sparse", "dense", "sparse"]}, "dense layers first"),
        ("qwen3_5_moe", {"linear_value_head_dim": 32}, "keys and values of one size"),
        ("gemma4", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention None"),
    ],
)
def test_a_model_that_llama_cpp_computes_otherwise_is_refused(name: str, fields: dict[str, Any], reason: str) -> None:
    from transformers import AutoConfig

    model_type, tiny = TINY[name]
    config = AutoConfig.for_model(model_type, **{**tiny, **fields}).to_dict()
    with pytest.raises(UnsupportedModel, match=reason):
        ARCHITECTURES[model_type].metadata_of(config)


def test_scaled_positions_are_refused() -> None:
    from transformers import AutoConfig

    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    config = AutoConfig.for_model("qwen2_moe", rope_parameters=scaled).to_dict()
    with pytest.raises(UnsupportedModel, match="rope_type linear"):
        ARCHITECTURES["qwen2_moe"].metadata_of(config)


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    save_tiny("glm4_moe_lite", tmp_path, attention_bias=True)
    with pytest.raises(UnsupportedModel, match=r"no place for model\.layers\.0\.self_attn\.\w+\.bias"):
        converted(tmp_path)


def test_a_missing_expert_is_refused(tmp_path: Path) -> None:
    save_tiny("qwen2_moe", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    left = {key: entry for key, entry in checkpoint.tensors.items() if ".experts.3." not in key}
    fewer = Checkpoint(tmp_path, checkpoint.config, left, (), ())
    with pytest.raises(UnsupportedModel, match="not all experts"):
        tensors_of(fewer, ARCHITECTURES["qwen2_moe"], config_of(tmp_path))
