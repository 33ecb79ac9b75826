"""What cannot be packed losslessly is refused, by name and with a next step."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.hub import HubCheckpoints, assert_same_as_stock, edit_checkpoint, edit_config, load_stock
from zipmoe.errors import CorruptData, NotFound, UnsupportedModel
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.experts.provider import CheckpointProvider


@pytest.fixture
def checkpoint(hub: HubCheckpoints, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hub.get("qwen2_moe"), tmp_path / "checkpoint"))


@pytest.mark.parametrize("model_type", ["no_such_model", "kimi_k2", "Qwen2_MoE", ""])
def test_a_model_type_that_transformers_does_not_know_is_refused(checkpoint: Path, model_type: str) -> None:
    edit_config(checkpoint, model_type=model_type)
    with pytest.raises(UnsupportedModel, match=rf"transformers 5\.\d+\.\d+ does not know model type '{model_type}'"):
        catalogue(checkpoint)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("llama", "this llama configuration has no Mixture-of-Experts layer"),
        ("bert", "transformers has no class that generates text|no Mixture-of-Experts layer"),
        ("clip", "transformers has no class that generates text for model type 'clip'"),
    ],
)
def test_a_model_without_text_or_experts_is_refused(checkpoint: Path, model_type: str, reason: str) -> None:
    edit_config(checkpoint, model_type=model_type)
    with pytest.raises(UnsupportedModel, match=reason):
        catalogue(checkpoint)


def test_a_configuration_without_a_family_is_refused(checkpoint: Path) -> None:
    edit_config(checkpoint, model_type=None)
    with pytest.raises(CorruptData, match="no model_type"):
        catalogue(checkpoint)


@pytest.mark.parametrize(
    ("quantisation", "named"),
    [({"quant_method": "fp8"}, "fp8"), ({"quant_method": "mxfp4"}, "mxfp4"), ("odd", "quantization_config is set")],
)
def test_a_quantised_checkpoint_is_refused(checkpoint: Path, quantisation: Any, named: str) -> None:
    edit_config(checkpoint, quantization_config=quantisation)
    with pytest.raises(UnsupportedModel, match=named) as error:
        catalogue(checkpoint)
    assert "bfloat16" in error.value.diagnostics()


@pytest.mark.parametrize("value", [{"num_experts": "many"}, {"num_attention_heads": 0}, {"hidden_act": "no_such"}])
def test_a_configuration_that_transformers_refuses_is_refused(checkpoint: Path, value: dict[str, Any]) -> None:
    edit_config(checkpoint, **value)
    with pytest.raises(UnsupportedModel, match="transformers refuses"):
        catalogue(checkpoint)


def test_more_layers_than_tensors_are_refused_before_they_are_built(checkpoint: Path) -> None:
    edit_config(checkpoint, num_hidden_layers=10**9)
    with pytest.raises(UnsupportedModel, match="num_hidden_layers 1000000000, but the checkpoint only"):
        catalogue(checkpoint)


def test_more_switch_experts_than_tensors_are_refused_before_they_are_built(
    hub: HubCheckpoints, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(hub.get("switch_transformers"), tmp_path / "checkpoint"))
    edit_config(path, num_experts=10**9)
    with pytest.raises(UnsupportedModel, match="num_experts 1000000000, but the checkpoint only"):
        catalogue(path)


def test_more_experts_than_anybody_has_are_refused_before_they_are_listed(checkpoint: Path) -> None:
    edit_config(checkpoint, num_experts=10**6)
    with pytest.raises(UnsupportedModel, match="1000000"):
        catalogue(checkpoint)


def test_a_model_without_a_sparse_layer_is_refused(checkpoint: Path) -> None:
    edit_config(checkpoint, mlp_only_layers=[0, 1, 2])
    with pytest.raises(UnsupportedModel, match="no Mixture-of-Experts layer"):
        catalogue(checkpoint)


def test_code_that_comes_with_a_checkpoint_is_never_run(hub: HubCheckpoints, tmp_path: Path) -> None:
    path = Path(shutil.copytree(hub.get("deepseek_v2"), tmp_path / "checkpoint"))
    assert json.loads((path / "config.json").read_text())["auto_map"]
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name in ("configuration_deepseek.py", "modeling_deepseek.py"):
        (path / name).write_text(trap)
    catalogue(path)
    assert not (tmp_path / "ran").exists()
    edit_config(path, model_type="not_in_transformers")
    with pytest.raises(UnsupportedModel):
        catalogue(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.int32, "I32")]
)
def test_routed_weights_that_only_a_quantised_checkpoint_has_are_refused(
    hub: HubCheckpoints, tmp_path: Path, dtype: torch.dtype, name: str
) -> None:
    key = "model.layers.1.mlp.experts.5.up_proj.weight"
    path = edit_checkpoint(
        hub.get("qwen2_moe"), tmp_path / "copy", lambda tensors: {**tensors, key: tensors[key].to(dtype)}
    )
    with pytest.raises(UnsupportedModel, match=f"{key}.* has dtype {name}, .*quantised") as error:
        catalogue(path)
    assert "float32" in error.value.diagnostics()


def without(*names: str) -> Any:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key not in names}


def test_a_missing_expert_is_named_by_its_key(hub: HubCheckpoints, tmp_path: Path) -> None:
    key = "model.layers.1.mlp.experts.5.up_proj.weight"
    path = edit_checkpoint(hub.get("qwen2_moe"), tmp_path / "copy", without(key))
    with pytest.raises(NotFound, match=rf"lacks 1 tensors of the model: {key}$"):
        catalogue(path)


def test_experts_missing_from_different_lists_are_both_named(hub: HubCheckpoints, tmp_path: Path) -> None:
    keys = (
        "model.layers.0.block_sparse_moe.experts.1.w1.weight",
        "model.layers.0.block_sparse_moe.experts.2.w3.weight",
    )
    path = edit_checkpoint(hub.get("mixtral"), tmp_path / "copy", without(*keys))
    with pytest.raises(NotFound, match=", ".join(keys)):
        catalogue(path)


def test_all_missing_tensors_of_a_kind_are_counted(hub: HubCheckpoints, tmp_path: Path) -> None:
    keys = [f"model.layers.2.mlp.experts.{i}.gate_proj.weight" for i in range(8)]
    path = edit_checkpoint(hub.get("qwen3_moe"), tmp_path / "copy", without(*keys, "model.norm.weight"))
    with pytest.raises(NotFound, match=r"lacks 9 tensors of the model: model\.norm\.weight, .*, \.\.\.$"):
        catalogue(path)


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("qwen2_moe", "lm_head.weight"),
        ("switch_transformers", "encoder.block.1.layer.1.mlp.experts.expert_3.wo.weight"),
        ("switch_transformers", "shared.weight"),
        ("gpt_oss", "model.layers.0.mlp.experts.down_proj"),
        ("gpt_oss", "model.layers.0.self_attn.sinks"),
        ("deepseek_v3", "model.layers.2.mlp.gate.e_score_correction_bias"),
        ("granitemoe", "model.embed_tokens.weight"),
    ],
)
def test_a_missing_tensor_is_never_filled_at_random(family: str, key: str, hub: HubCheckpoints, tmp_path: Path) -> None:
    path = edit_checkpoint(hub.get(family), tmp_path / "copy", without(key))
    with pytest.raises(NotFound, match=rf"lacks 1 tensors of the model: {key}$"):
        catalogue(path)


@pytest.mark.parametrize(
    "key", ["model.norm.weight", "model.layers.1.mlp.experts.5.up_proj.weight", "model.layers.0.mlp.gate.weight"]
)
def test_a_shape_that_is_not_the_models_is_refused(hub: HubCheckpoints, tmp_path: Path, key: str) -> None:
    path = edit_checkpoint(
        hub.get("qwen2_moe"), tmp_path / "copy", lambda tensors: {**tensors, key: tensors[key][:-1].clone()}
    )
    with pytest.raises(UnsupportedModel, match=r"shape|size"):
        catalogue(path)


def test_a_packed_shape_that_is_not_the_models_is_refused(hub: HubCheckpoints, tmp_path: Path) -> None:
    key = "model.layers.1.mlp.experts.gate_up_proj"
    path = edit_checkpoint(
        hub.get("qwen2_moe", packed=True), tmp_path / "copy", lambda t: {**t, key: t[key].mT.contiguous()}
    )
    with pytest.raises(UnsupportedModel, match=rf"{key}.* has shape \[8, 64, 96\], the model \[8, 96, 64\]"):
        catalogue(path)


def test_one_expert_too_many_is_refused(hub: HubCheckpoints, tmp_path: Path) -> None:
    key = "model.layers.1.mlp.experts.{}.down_proj.weight"
    path = edit_checkpoint(
        hub.get("qwen2_moe"), tmp_path / "copy", lambda t: {**t, key.format(8): t[key.format(0)].clone()}
    )
    with pytest.raises(
        UnsupportedModel, match=r"shape \[8, 64, 48\], 9 tensors like .*make bf16 of shape \[9, 64, 48\]"
    ):
        catalogue(path)


def test_tensors_that_the_model_does_not_know_are_reported_and_ignored(
    hub: HubCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = edit_checkpoint(
        hub.get("qwen2_moe"), tmp_path / "copy", lambda tensors: {**tensors, "model.odd.weight": torch.zeros(3)}
    )
    with caplog.at_level(logging.WARNING):
        found = catalogue(path)
    assert found.unexpected_keys == ("model.odd.weight",)
    assert "model.odd.weight" in caplog.text
    assert_same_as_stock(found, load_stock(path)[0])


def test_layers_that_only_serve_training_are_ignored_silently(hub: HubCheckpoints, tmp_path: Path) -> None:
    # DeepSeek-V3 has a 62nd layer for multi-token prediction, experts included
    extra = {
        f"model.layers.61.mlp.experts.{i}.{name}_proj.weight": torch.zeros(4, 4, dtype=torch.bfloat16)
        for i in range(2) for name in ("gate", "up", "down")
    }  # fmt: skip
    path = edit_checkpoint(hub.get("deepseek_v3"), tmp_path / "copy", lambda tensors: {**tensors, **extra})
    found = catalogue(path)
    assert found.unexpected_keys == ()
    assert_same_as_stock(found, load_stock(path)[0])


def test_a_shard_that_shrinks_after_it_was_catalogued_is_noticed(checkpoint: Path) -> None:
    found = catalogue(checkpoint)
    shard = found.layers[0].experts[0][0].pieces[0].path
    with shard.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CorruptData):
        next(CheckpointProvider(found.layers).experts(0, {0: 1}))
