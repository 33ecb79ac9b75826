"""Conversions beside those of the families in `synth`: the catalogue, the store and the answers are stock's."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import conversion_mapping
from transformers.core_model_loading import Chunk, Concatenate, Interleave, MergeModulelist, Transpose, WeightConverter

from tests.model.checkpoint.stock_answer import assert_packs_as_stock, widened
from tests.model.hub import HubCheckpoints, Tensors, assert_same_as_stock, edit_checkpoint, load_stock
from tests.model.tiny import save_checkpoint
from tests.store.sources import tree
from zipmoe.codec.registry import create_codec
from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.checkpoint.conversion import ConvertedPiece
from zipmoe.model.checkpoint.transposed_piece import TransposedPiece
from zipmoe.store.pack.fingerprint import source_fingerprint
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.progress import Progress
from zipmoe.store.pack.writer import PackOptions, pack_store

Converters = list[WeightConverter]
GATE_UP = ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"]
DOWN = WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", [MergeModulelist(dim=0)])


def register(monkeypatch: pytest.MonkeyPatch, hub: HubCheckpoints, converters: Converters) -> None:
    """Makes these the conversions of qwen2_moe, for stock and for the catalogue alike.

    The checkpoint that all tests share is made first: its tensors follow the conversions of the moment.
    """
    hub.get("qwen2_moe")
    conversion_mapping.get_checkpoint_conversion_mapping("qwen2_moe")  # fills the table
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, "qwen2_moe", converters)


def test_rows_that_are_interleaved_are_followed_one_by_one(
    hub: HubCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = [MergeModulelist(dim=0), Concatenate(dim=1), Interleave(dim=1)]
    register(monkeypatch, hub, [WeightConverter(GATE_UP, "mlp.experts.gate_up_proj", operations), DOWN])
    path = hub.get("qwen2_moe")
    found = catalogue(path)
    assert len(found.layers[0].experts[0][0].pieces) > 2
    assert_same_as_stock(found, load_stock(path)[0])


def test_a_fused_dense_tensor_is_converted_by_transformers(
    hub: HubCheckpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = [f"self_attn.{name}_proj.weight" for name in "qkv"]

    def fuse(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for layer in range(3):
            pieces = [tensors.pop(f"model.layers.{layer}.{part}") for part in parts]
            tensors[f"model.layers.{layer}.self_attn.qkv.weight"] = torch.cat(pieces)
        return tensors

    split = WeightConverter("self_attn.qkv.weight", parts, [Chunk(dim=0)])
    gate_up = WeightConverter(GATE_UP, "mlp.experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=1)])
    register(monkeypatch, hub, [gate_up, DOWN, split])
    path = edit_checkpoint(hub.get("qwen2_moe"), tmp_path / "fused", fuse)
    found = catalogue(path)
    stock, info = load_stock(path)
    assert not any(info.values()), info
    assert_same_as_stock(found, stock)
    assert sum(isinstance(tensor.pieces[0], ConvertedPiece) for tensor in found.dense_tensors) == 9


def transposed_experts(tensors: Tensors) -> Tensors:
    """The experts of each layer in one tensor, inputs first, as qwen3_vl_moe has them."""
    for layer in range(3):
        place = f"model.layers.{layer}.mlp.experts"
        parts = {
            name: torch.stack([tensors.pop(f"{place}.{index}.{name}_proj.weight") for index in range(8)])
            for name in ("gate", "up", "down")
        }
        tensors[f"{place}.gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], dim=1).mT.contiguous()
        tensors[f"{place}.down_proj"] = parts["down"].mT.contiguous()
    return tensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_experts_that_are_stored_transposed_answer_as_stock(
    dtype: torch.dtype, hub: HubCheckpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.get("qwen2_moe")
    save_checkpoint("qwen2_moe", tmp_path / "plain")
    names = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    register(monkeypatch, hub, [WeightConverter(name, name, [Transpose(1, 2, check_dims=True)]) for name in names])
    path = edit_checkpoint(
        tmp_path / "plain", tmp_path / "copy", lambda tensors: widened(transposed_experts(tensors), dtype)
    )
    found = assert_packs_as_stock(path, tmp_path / "store")
    kinds = {
        type(piece)
        for layer in found.layers
        for expert in layer.experts
        for tensor in expert
        for piece in tensor.pieces
    }
    assert kinds == {TransposedPiece}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_experts_whose_columns_are_reordered_answer_as_stock(
    dtype: torch.dtype, hub: HubCheckpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_checkpoint("qwen2_moe", tmp_path / "plain")
    down = WeightConverter(
        "mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", [MergeModulelist(dim=0), Interleave(dim=2)]
    )
    gate_up = WeightConverter(GATE_UP, "mlp.experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=1)])
    register(monkeypatch, hub, [gate_up, down])
    path = edit_checkpoint(tmp_path / "plain", tmp_path / "copy", lambda tensors: widened(tensors, dtype))
    found = assert_packs_as_stock(path, tmp_path / "store")
    assert {type(expert[1].pieces[0]) for layer in found.layers for expert in layer.experts} == {ConvertedPiece}


def test_an_operation_on_values_is_followed(hub: HubCheckpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    class MergeAndAddOne(MergeModulelist):
        def convert(self, input_dict, source_patterns, target_patterns, **kwargs):  # type: ignore[no-untyped-def]
            merged = super().convert(input_dict, source_patterns, target_patterns, **kwargs)
            return {name: tensor + 1 for name, tensor in merged.items()}

    down = WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", [MergeAndAddOne()])
    gate_up = WeightConverter(GATE_UP, "mlp.experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=1)])
    register(monkeypatch, hub, [gate_up, down])
    path = hub.get("qwen2_moe")
    assert_same_as_stock(catalogue(path), load_stock(path)[0])


def test_a_converted_checkpoint_gives_the_same_store_after_an_interruption(
    hub: HubCheckpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The fingerprint of transposed and converted experts depends on no place and on no run."""
    gate_up = WeightConverter("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", [Transpose(1, 2)])
    down = WeightConverter("mlp.experts.down_proj", "mlp.experts.down_proj", [Transpose(1, 2), Interleave(dim=2)])
    register(monkeypatch, hub, [gate_up, down])
    path = edit_checkpoint(hub.get("qwen2_moe"), tmp_path / "copy", transposed_experts)
    options = PackOptions(codec=create_codec("zstd"), workers=2)

    def stop_after_ten(progress: Progress) -> None:
        if progress.done_experts == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_store(catalogue(path), tmp_path / "resumed", options, stop_after_ten)
    moved = path.rename(tmp_path / "moved")
    pack_store(catalogue(moved), tmp_path / "resumed", options)
    pack_store(catalogue(moved), tmp_path / "at once", PackOptions(codec=create_codec("zstd"), workers=1))
    assert tree(tmp_path / "resumed") == tree(tmp_path / "at once")
    assert pack_store(catalogue(moved), tmp_path / "resumed", options).already_packed


@pytest.mark.parametrize("place", [0, 1])
def test_another_training_has_another_fingerprint(
    place: int, hub: HubCheckpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    operations = [[Transpose(1, 2)], [Transpose(1, 2), Interleave(dim=2)]]
    register(monkeypatch, hub, [WeightConverter(name, name, ops) for name, ops in zip(names, operations, strict=True)])
    path = edit_checkpoint(hub.get("qwen2_moe"), tmp_path / "copy", transposed_experts)
    key = f"model.layers.1.{names[place]}"
    other = edit_checkpoint(path, tmp_path / "other", lambda tensors: {**tensors, key: tensors[key] + 1})
    with closing(PieceReader()) as reader:
        assert source_fingerprint(catalogue(path), reader) != source_fingerprint(catalogue(other), reader)


def test_experts_that_are_not_outermost_are_refused_by_the_operation(
    hub: HubCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", [MergeModulelist(dim=1)])
    gate_up = WeightConverter(GATE_UP, "mlp.experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=1)])
    register(monkeypatch, hub, [gate_up, down])
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.mlp\.experts\.down_proj .*MergeModulelist\(dim=1\)"):
        catalogue(hub.get("qwen2_moe"))


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_a_checkpoint_of_the_model_without_its_head_has_no_prefix(
    family: str, hub: HubCheckpoints, tmp_path: Path
) -> None:
    path = edit_checkpoint(
        hub.get(family),
        tmp_path / "copy",
        lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()},
    )
    found = catalogue(path)
    assert found.unexpected_keys == ()
    assert_same_as_stock(found, load_stock(path)[0])
