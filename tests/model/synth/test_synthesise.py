from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.model.hub import load_stock
from zipmoe.errors import InvalidRequest, ResourceExhausted, UnsupportedModel
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.checkpoint.checkpoint import INDEX_FILE, open_checkpoint
from zipmoe.model.synth import shards
from zipmoe.model.synth.configs import FAMILIES
from zipmoe.model.synth.writer import SynthProgress, synthesise

# One key of every kind in the routed experts and gates, as the hub's checkpoints spell them.
HUB_KEYS = {
    "qwen2_moe": [
        "model.layers.0.mlp.experts.7.gate_proj.weight", "model.layers.0.mlp.experts.7.up_proj.weight",
        "model.layers.0.mlp.experts.7.down_proj.weight", "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.shared_expert.down_proj.weight", "model.layers.0.mlp.shared_expert_gate.weight",
        "model.layers.0.self_attn.q_proj.bias",
    ],
    "deepseek_v2": [
        "model.layers.1.mlp.experts.7.gate_proj.weight", "model.layers.1.mlp.gate.weight",
        "model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.shared_experts.up_proj.weight",
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "model.layers.0.self_attn.kv_b_proj.weight",
    ],
    "switch_transformers": [
        "encoder.block.1.layer.1.mlp.experts.expert_7.wi.weight",
        "encoder.block.1.layer.1.mlp.experts.expert_7.wo.weight",
        "decoder.block.3.layer.2.mlp.experts.expert_0.wi.weight",
        "encoder.block.1.layer.1.mlp.router.classifier.weight",
        "encoder.block.0.layer.1.mlp.wi.weight", "shared.weight",
    ],
    "qwen3_moe": ["model.layers.0.mlp.experts.7.gate_proj.weight", "model.layers.0.self_attn.q_norm.weight"],
    "olmoe": ["model.layers.0.mlp.experts.7.gate_proj.weight", "model.layers.0.self_attn.q_norm.weight"],
    "mixtral": [
        "model.layers.0.block_sparse_moe.experts.3.w1.weight", "model.layers.0.block_sparse_moe.experts.3.w2.weight",
        "model.layers.0.block_sparse_moe.experts.3.w3.weight", "model.layers.0.block_sparse_moe.gate.weight",
    ],
    "gpt_oss": [
        "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.gate_up_proj_bias",
        "model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.router.weight", "model.layers.0.self_attn.sinks",
    ],
    "phimoe": [
        "model.layers.0.block_sparse_moe.experts.3.w1.weight", "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.0.input_layernorm.bias", "lm_head.bias",
    ],
    "glm4_moe": [
        "model.layers.1.mlp.experts.7.down_proj.weight", "model.layers.1.mlp.gate.e_score_correction_bias",
    ],
    "deepseek_v3": [
        "model.layers.1.mlp.experts.7.down_proj.weight", "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.0.self_attn.q_a_proj.weight",
    ],
    "granitemoe": [
        "model.layers.0.block_sparse_moe.input_linear.weight", "model.layers.0.block_sparse_moe.output_linear.weight",
        "model.layers.0.block_sparse_moe.router.layer.weight",
    ],
}  # fmt: skip


def digests(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())}


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_are_those_of_the_hub(family: str, tmp_path: Path) -> None:
    synthesise(family, tmp_path)
    tensors = open_checkpoint(tmp_path).tensors
    for key in HUB_KEYS[family]:
        assert key in tensors
        assert tensors[key].dtype == ("F32" if key.endswith("e_score_correction_bias") else "BF16")


def test_shards_index_and_configuration_are_those_of_the_hub(tmp_path: Path) -> None:
    summary = synthesise("qwen2_moe", tmp_path, shards_bytes=300_000)
    weight_map = json.loads((tmp_path / INDEX_FILE).read_text())
    assert weight_map["metadata"]["total_size"] == summary.weight_bytes
    assert sorted(set(weight_map["weight_map"].values())) == [
        f"model-{i + 1:05d}-of-{summary.shard_count:05d}.safetensors" for i in range(summary.shard_count)
    ]
    assert len(weight_map["weight_map"]) == summary.tensor_count
    for name in set(weight_map["weight_map"].values()):
        with safe_open(tmp_path / name, "pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            assert {key for key, place in weight_map["weight_map"].items() if place == name} == set(shard.keys())
        assert (tmp_path / name).stat().st_size <= 300_000 + 100_000  # header
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qwen2_moe", ["Qwen2MoeForCausalLM"])
    assert config["torch_dtype"] == "bfloat16"


def test_one_shard_needs_no_index(tmp_path: Path) -> None:
    assert synthesise("olmoe", tmp_path, shards_bytes=1 << 40).shard_count == 1
    assert (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / INDEX_FILE).exists()


@pytest.mark.parametrize(("family", "options"), [("qwen2_moe", {}), ("switch_transformers", {"packed": True})])
def test_the_same_arguments_give_the_same_bytes(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    synthesise(family, tmp_path / "a", seed=3, **options)
    synthesise(family, tmp_path / "b", seed=3, worker_count=1, **options)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    synthesise(family, tmp_path / "c", seed=4, **options)
    assert digests(tmp_path / "a") != digests(tmp_path / "c")


def test_weights_do_not_depend_on_how_they_are_divided_into_shards(tmp_path: Path) -> None:
    synthesise("mixtral", tmp_path / "a", shards_bytes=1)
    synthesise("mixtral", tmp_path / "b", straddle=True)
    a, b = load_stock(tmp_path / "a")[0].state_dict(), load_stock(tmp_path / "b")[0].state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_weights_are_those_of_the_block_they_are_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of several blocks is made of blocks that differ."""
    monkeypatch.setattr(shards, "BLOCK_WEIGHTS", 1000)
    synthesise("olmoe", tmp_path)
    weights = load_stock(tmp_path)[0].state_dict()["lm_head.weight"].flatten()
    assert not torch.equal(weights[:1000], weights[1000:2000])
    assert weights.numel() > 30_000


def test_matrices_are_normally_distributed_and_norms_are_one(tmp_path: Path) -> None:
    overrides = {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}
    synthesise("qwen2_moe", tmp_path, layers=1, overrides=overrides)
    state = {name: tensor.float() for name, tensor in load_stock(tmp_path)[0].state_dict().items()}
    assert torch.equal(state["model.norm.weight"], torch.ones(1024))
    weights = state["model.layers.0.self_attn.q_proj.weight"].flatten()
    assert abs(float(weights.mean())) < 1e-4
    assert float(weights.std()) == pytest.approx(0.02, rel=1e-2)
    assert float(((weights / weights.std()) ** 4).mean()) == pytest.approx(3.0, rel=2e-2)
    assert len(state["model.layers.0.mlp.experts.gate_up_proj"].unique()) > 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_spread_over_the_experts(family: str, tmp_path: Path) -> None:
    synthesise(family, tmp_path)
    stock = load_stock(tmp_path)[0].eval()
    tokens = torch.arange(20, 148)[None]
    inputs = {"input_ids": tokens, **({"decoder_input_ids": tokens} if stock.config.is_encoder_decoder else {})}
    used: list[set[int]] = []

    def note(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        selected = arguments[1]
        used.append(set((selected.flatten(0, 1).argmax(-1) if selected.dim() == 3 else selected).flatten().tolist()))

    for layer in catalogue(tmp_path).layers:
        stock.get_submodule(layer.module).register_forward_pre_hook(note)
    with torch.inference_mode():
        stock(**inputs)
    expert_count = len(catalogue(tmp_path).layers[0].experts)
    assert len(used) == len(catalogue(tmp_path).layers)
    assert all(len(experts) > expert_count // 2 for experts in used)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_number_of_layers_is_followed(family: str, tmp_path: Path) -> None:
    for layers in (1, 2, 6):
        path = tmp_path / str(layers)
        synthesise(family, path, layers=layers)
        stock, info = load_stock(path)
        assert not any(info.values())
        assert stock.config.num_hidden_layers == layers
        assert len(catalogue(path).layers) >= 1


def test_values_of_the_configuration_can_be_overridden(tmp_path: Path) -> None:
    synthesise("qwen3_moe", tmp_path, overrides={"num_experts": 5, "moe_intermediate_size": 24, "eos_token_id": 7})
    layer = catalogue(tmp_path).layers[0]
    assert len(layer.experts) == 5
    assert layer.spec.tensors[1].cols == 24
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 7


def test_progress_covers_every_byte(tmp_path: Path) -> None:
    steps: list[SynthProgress] = []
    summary = synthesise("deepseek_v2", tmp_path, progress=steps.append)
    written = [step.written_bytes for step in steps]
    assert written == sorted(written)
    assert written[-1] == summary.weight_bytes
    assert {step.total_bytes for step in steps} == {summary.weight_bytes}
    assert {step.file_name for step in steps} == {file.name for file in tmp_path.glob("*.safetensors")}


@pytest.mark.parametrize(
    "options",
    [{"seed": -1}, {"shards_bytes": 0}, {"layers": 0}, {"vocab": 0}, {"worker_count": 0}, {"vocab": 100}],
)
def test_an_argument_out_of_range_is_refused_and_nothing_is_left(options: dict[str, int], tmp_path: Path) -> None:
    for family in ("qwen2_moe", "switch_transformers"):
        with pytest.raises(InvalidRequest):
            synthesise(family, tmp_path / "new", **options)
        assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir())


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="'llama'"):
        synthesise("llama", tmp_path)


def test_a_configuration_that_transformers_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="qwen2_moe configuration"):
        synthesise("qwen2_moe", tmp_path, overrides={"num_experts": "many"})


def test_a_directory_with_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidRequest, match="is not empty"):
        synthesise("olmoe", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match="cannot write to"):
        synthesise("olmoe", tmp_path / "file")


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(ResourceExhausted, match=r"needs \d+ bytes, the disk of .* has 10 left"):
        synthesise("olmoe", tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write = os.write

    def fill(descriptor: int, content: memoryview) -> int:
        written.append(len(content))
        if len(written) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", fill)
    with pytest.raises(ResourceExhausted, match=r"was full after \d+ of \d+ bytes"):
        synthesise("olmoe", tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_interrupted_synthesis_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(_: SynthProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise("olmoe", tmp_path, progress=interrupt)
    assert not any(tmp_path.iterdir())


def test_without_its_last_file_a_synthesis_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What kill -9 leaves cannot be taken for a checkpoint: config.json comes last."""
    order: list[str] = []
    write_text = Path.write_text

    def note(self: Path, *args: Any, **kwargs: Any) -> int:
        order.append(self.name)
        return write_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", note)
    synthesise("olmoe", tmp_path)
    assert order[-3:] == [INDEX_FILE, "generation_config.json", "config.json"]
    newest = max(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert newest.name == "config.json"
