"""Tied weights are kept once, and never lost."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.model.hub import HubCheckpoints, assert_same_as_stock, edit_checkpoint, load_stock
from zipmoe.model.checkpoint.catalogue import catalogue


def test_a_tied_weight_that_is_stored_once_is_listed_once(hub: HubCheckpoints) -> None:
    names = {tensor.name for tensor in catalogue(hub.get("granitemoe")).dense_tensors}
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_equal_copies_of_a_tied_weight_are_listed_once(hub: HubCheckpoints, tmp_path: Path) -> None:
    path = edit_checkpoint(
        hub.get("granitemoe"),
        tmp_path / "copy",
        lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
    )
    found = catalogue(path)
    assert "lm_head.weight" not in {tensor.name for tensor in found.dense_tensors}
    assert_same_as_stock(found, load_stock(path)[0])


def test_copies_that_differ_are_both_listed(hub: HubCheckpoints, tmp_path: Path) -> None:
    path = edit_checkpoint(
        hub.get("granitemoe"),
        tmp_path / "copy",
        lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1},
    )
    found = catalogue(path)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= {tensor.name for tensor in found.dense_tensors}
    assert_same_as_stock(found, load_stock(path)[0])


def test_the_tied_copy_alone_suffices(hub: HubCheckpoints, tmp_path: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
        return tensors

    path = edit_checkpoint(hub.get("granitemoe"), tmp_path / "copy", rename)
    found = catalogue(path)
    assert "lm_head.weight" in {tensor.name for tensor in found.dense_tensors}
    assert_same_as_stock(found, load_stock(path)[0])


def test_switch_keeps_one_of_its_four_embeddings(hub: HubCheckpoints, tmp_path: Path) -> None:
    path = edit_checkpoint(
        hub.get("switch_transformers"),
        tmp_path / "copy",
        lambda tensors: {**tensors, "decoder.embed_tokens.weight": tensors["shared.weight"].clone()},
    )
    found = catalogue(path)
    embeddings = {tensor.name for tensor in found.dense_tensors if tensor.shape == (512, 64)}
    assert embeddings == {"shared.weight"}
    assert_same_as_stock(found, load_stock(path)[0])
