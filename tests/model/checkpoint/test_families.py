"""For every family and layout: the catalogue's bytes are those that `from_pretrained` puts into the model."""

from __future__ import annotations

import pytest

from tests.model.hub import HubCheckpoints, assert_same_as_stock, load_stock
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.synth.configs import FAMILIES, TINY

LAYOUTS = {
    "shards": {},
    "one_file": {"shards_bytes": 1 << 40},
    "a_shard_a_tensor": {"shards_bytes": 1},
    "packed": {"packed": True},
    "straddling": {"straddle": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_of_the_loaded_model(family: str, layout: str, hub: HubCheckpoints) -> None:
    path = hub.get(family, **LAYOUTS[layout])
    found = catalogue(path)
    stock, info = load_stock(path)
    assert not any(info.values()), info
    assert_same_as_stock(found, stock)
    assert found.family == family
    assert found.unexpected_keys == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_listed_in_forward_order(family: str, hub: HubCheckpoints) -> None:
    found = catalogue(hub.get(family))
    modules = [layer.module for layer in found.layers]
    if family == "switch_transformers":
        assert modules == [
            "encoder.block.1.layer.1.mlp.experts",
            "encoder.block.3.layer.1.mlp.experts",
            "decoder.block.1.layer.2.mlp.experts",
            "decoder.block.3.layer.2.mlp.experts",
        ]
    else:
        block = "block_sparse_moe" if family == "granitemoe" else "mlp"
        dense_layers = TINY[family].get("first_k_dense_replace", 1 if family == "glm4_moe" else 0)
        layers = range(dense_layers, TINY[family]["num_hidden_layers"])
        assert modules == [f"model.layers.{i}.{block}.experts" for i in layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_have_the_modules_own_names_and_orientation(family: str, hub: HubCheckpoints) -> None:
    tensors = catalogue(hub.get(family)).layers[0].spec.tensors
    shapes = [(tensor.name, tensor.rows, tensor.cols) for tensor in tensors]
    if family == "switch_transformers":
        assert shapes == [("wi.weight", 96, 64), ("wo.weight", 64, 96)]
    elif family == "gpt_oss":
        assert shapes == [("gate_up_proj", 64, 96), ("down_proj", 48, 64)]
    else:
        assert shapes == [("gate_up_proj", 96, 64), ("down_proj", 64, 48)]


def test_experts_and_dense_tensors_are_all_bytes_of_the_checkpoint(hub: HubCheckpoints) -> None:
    for family in FAMILIES:
        path = hub.get(family, shards_bytes=1 << 40)
        found = catalogue(path)
        routed = sum(piece.nbytes for layer in found.layers for e in layer.experts for t in e for piece in t.pieces)
        dense = sum(tensor.nbytes for tensor in found.dense_tensors)
        header_bytes = 8 + int.from_bytes((path / "model.safetensors").read_bytes()[:8], "little")
        assert routed + dense == (path / "model.safetensors").stat().st_size - header_bytes


def test_biases_of_gpt_oss_experts_are_dense(hub: HubCheckpoints) -> None:
    names = {tensor.name for tensor in catalogue(hub.get("gpt_oss")).dense_tensors}
    for layer in range(4):
        assert f"model.layers.{layer}.mlp.experts.gate_up_proj_bias" in names
        assert f"model.layers.{layer}.mlp.experts.down_proj_bias" in names


def test_correction_biases_stay_in_fp32(hub: HubCheckpoints) -> None:
    for family in ("deepseek_v3", "glm4_moe"):
        dtypes = {tensor.name: tensor.dtype for tensor in catalogue(hub.get(family)).dense_tensors}
        assert {name for name, dtype in dtypes.items() if dtype == "F32"} == {
            f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2)
        }


def test_an_expert_that_straddles_two_shards_is_read_from_both(hub: HubCheckpoints) -> None:
    found = catalogue(hub.get("qwen2_moe", straddle=True))
    for layer in found.layers:
        for gate_up, _ in layer.experts:
            assert len({piece.path for piece in gate_up.pieces}) == 2


def test_neighbouring_pieces_become_one_read(hub: HubCheckpoints) -> None:
    found = catalogue(hub.get("qwen2_moe", shards_bytes=1 << 40))
    for layer in found.layers:
        for expert in layer.experts:
            assert [len(tensor.pieces) for tensor in expert] == [1, 1]  # gate before up in the file


def test_model_files_are_configuration_and_tokenizer(hub: HubCheckpoints) -> None:
    names = [file.name for file in catalogue(hub.get("gpt_oss")).model_files]
    assert names == [
        "chat_template.jinja", "config.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
