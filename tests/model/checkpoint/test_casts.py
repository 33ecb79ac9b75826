"""fp32 and fp16 checkpoints: every byte of the catalogue, of the store and of the answers is stock's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.model.checkpoint.stock_answer import assert_packs_as_stock, widened
from tests.model.hub import HubCheckpoints, Tensors, assert_same_as_stock, edit_checkpoint, load_stock
from tests.model.tiny import save_checkpoint
from tests.store.sources import tree
from zipmoe.codec.registry import create_codec
from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.cast_piece import CastPiece
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.store.pack.writer import PackOptions, pack_store


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("qwen2_moe", torch.float32),
        ("qwen2_moe", torch.float16),
        ("gpt_oss", torch.float32),
        ("switch_transformers", torch.float32),
        ("glm4_moe", torch.float16),  # keeps e_score_correction_bias in fp32
    ],
)
def test_a_checkpoint_in_another_dtype_answers_as_stock(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_checkpoint(family, tmp_path / "bf16")
    path = edit_checkpoint(tmp_path / "bf16", tmp_path / "wide", lambda tensors: widened(tensors, dtype))
    found = assert_packs_as_stock(path, tmp_path / "store")
    assert all(
        isinstance(piece, CastPiece) for layer in found.layers for e in layer.experts for t in e for piece in t.pieces
    )


def test_the_casts_are_counted_by_dtype(hub: HubCheckpoints, tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> Tensors:
        wide = {"model.layers.1.mlp.experts.5.up_proj.weight": torch.float32, "lm_head.weight": torch.float32,
                "model.norm.weight": torch.float16}  # fmt: skip
        return {name: tensor.to(wide.get(name, tensor.dtype)) for name, tensor in tensors.items()}

    path = edit_checkpoint(hub.get("qwen2_moe"), tmp_path / "copy", edit)
    found = catalogue(path)
    assert found.casts == {"F16": 1, "F32": 2}
    assert_same_as_stock(found, load_stock(path)[0])
    assert catalogue(hub.get("glm4_moe")).casts == {}  # its fp32 tensors stay in fp32


def test_widening_to_fp32_loses_nothing_and_is_not_counted(hub: HubCheckpoints, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    path = edit_checkpoint(
        hub.get("glm4_moe"), tmp_path / "copy", lambda tensors: {**tensors, name: tensors[name].bfloat16()}
    )
    found = catalogue(path)
    assert found.casts == {}
    assert next(tensor.dtype for tensor in found.dense_tensors if tensor.name == name) == "F32"
    assert_same_as_stock(found, load_stock(path)[0])


def test_a_matrix_whose_halves_differ_in_dtype_is_cast_by_halves(hub: HubCheckpoints, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    path = edit_checkpoint(
        hub.get("qwen2_moe"),
        tmp_path / "copy",
        lambda tensors: {**tensors, name: widened(tensors, torch.float32)[name]},
    )
    found = catalogue(path)
    assert [isinstance(piece, CastPiece) for piece in found.layers[0].experts[0][0].pieces] == [False, True]
    assert_same_as_stock(found, load_stock(path)[0])


def test_a_store_has_the_same_bytes_from_fp32_as_from_its_cast(hub: HubCheckpoints, tmp_path: Path) -> None:
    """The dense files, the experts and the manifest; so the number of workers and the reads leave no trace either."""
    path = edit_checkpoint(hub.get("qwen2_moe"), tmp_path / "wide", lambda tensors: widened(tensors, torch.float32))
    cast = edit_checkpoint(path, tmp_path / "cast", lambda tensors: {name: t.bfloat16() for name, t in tensors.items()})
    for source, workers in ((path, 3), (cast, 1)):
        options = PackOptions(codec=create_codec("cascade"), workers=workers)
        pack_store(catalogue(source), tmp_path / f"{source.name}-store", options)
    assert tree(tmp_path / "wide-store") == tree(tmp_path / "cast-store")


def test_a_dense_dtype_that_torch_does_not_cast_is_refused(hub: HubCheckpoints, tmp_path: Path) -> None:
    name = "model.norm.weight"
    path = edit_checkpoint(
        hub.get("qwen2_moe"), tmp_path / "copy", lambda tensors: {**tensors, name: tensors[name].to(torch.float8_e5m2)}
    )
    with pytest.raises(UnsupportedModel, match=rf"{name}.*F8_E5M2"):
        catalogue(path)
