"""Conversions beside those of today's families: followed where they move whole rows, refused where they do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import conversion_mapping
from transformers.core_model_loading import Chunk, Concatenate, Interleave, MergeModulelist, Transpose, WeightConverter

from tests.model.hub import HubCheckpoints, assert_same_as_stock, edit_checkpoint, load_stock
from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.catalogue import catalogue

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
    assert sum(tensor.data is not None for tensor in found.dense_tensors) == 9


@pytest.mark.parametrize(
    ("operations", "named"),
    [
        pytest.param([MergeModulelist(dim=0), Transpose(1, 2)], r"Transpose", id="columns become rows"),
        pytest.param([MergeModulelist(dim=0), Interleave(dim=2)], r"Interleave\(dim=2\)", id="columns are reordered"),
        pytest.param([MergeModulelist(dim=1)], r"MergeModulelist\(dim=1\)", id="experts are not outermost"),
    ],
)
def test_an_operation_on_columns_is_refused_by_name(
    operations: list[object], named: str, hub: HubCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", operations)
    gate_up = WeightConverter(GATE_UP, "mlp.experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=1)])
    register(monkeypatch, hub, [gate_up, down])
    with pytest.raises(UnsupportedModel, match=rf"layers\.0\.mlp\.experts\.down_proj .*{named}"):
        catalogue(hub.get("qwen2_moe"))


def test_an_operation_on_values_is_refused(hub: HubCheckpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    class AddOne(MergeModulelist):
        def convert(self, input_dict, source_patterns, target_patterns, **kwargs):  # type: ignore[no-untyped-def]
            merged = super().convert(input_dict, source_patterns, target_patterns, **kwargs)
            return {name: tensor + 1 for name, tensor in merged.items()}

    down = WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", [AddOne()])
    gate_up = WeightConverter(GATE_UP, "mlp.experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=1)])
    register(monkeypatch, hub, [gate_up, down])
    with pytest.raises(UnsupportedModel, match="changes more than the order of rows"):
        catalogue(hub.get("qwen2_moe"))
