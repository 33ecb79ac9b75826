"""Checkpoints in .bin shards: found as `from_pretrained` finds them, packed and answered as stock does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.model.checkpoint.stock_answer import assert_packs_as_stock, widened
from tests.model.checkpoint.test_bin_shard import CallOnLoad
from tests.model.hub import HubCheckpoints, Tensors, assert_same_as_stock, copy_without_weights, load_stock
from tests.model.tiny import save_checkpoint
from tests.store.sources import tree
from zipmoe.codec.registry import create_codec
from zipmoe.errors import CorruptData, InvalidRequest, NotFound, UnsupportedModel
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.checkpoint.checkpoint import BIN_FILE, BIN_INDEX_FILE, open_checkpoint
from zipmoe.model.checkpoint.conversion import ConvertedPiece
from zipmoe.model.checkpoint.memory_file import MemoryFile
from zipmoe.model.checkpoint.transposed_piece import TransposedPiece
from zipmoe.store.pack.source import ByteRange, ranges_of
from zipmoe.store.pack.writer import PackOptions, pack_store

SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def as_bin(
    source: Path, target: Path, edit: Callable[[Tensors], Tensors] = dict, *, shards: int = 1, zipped: bool = True
) -> Path:
    """A copy whose tensors went through `edit` and stand in .bin shards."""
    tensors: Tensors = {}
    for shard in sorted(source.glob("*.safetensors")):
        tensors.update(load_file(shard))
    tensors = edit(tensors)
    copy_without_weights(source, target)
    if shards == 1:
        torch.save(tensors, target / BIN_FILE, _use_new_zipfile_serialization=zipped)
        return target
    weight_map = {name: SHARDS[index % 2] for index, name in enumerate(tensors)}
    for shard in SHARDS:
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == shard}
        torch.save(part, target / shard, _use_new_zipfile_serialization=zipped)
    write_index(target, weight_map)
    return target


def write_index(path: Path, weight_map: dict[str, str]) -> None:
    (path / BIN_INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def sharded(hub: HubCheckpoints, tmp_path: Path) -> Path:
    return as_bin(hub.get("qwen2_moe"), tmp_path / "sharded", shards=2)


@pytest.mark.parametrize("zipped", [pytest.param(True, id="zip"), pytest.param(False, id="before 1.6")])
@pytest.mark.parametrize("shards", [1, 2])
def test_switch_in_fp32_bin_shards_answers_as_stock(shards: int, zipped: bool, tmp_path: Path) -> None:
    """Google's checkpoints: every embedding stands in the file under all its names, in one storage."""
    save_checkpoint("switch_transformers", tmp_path / "bf16")

    def edit(tensors: Tensors) -> Tensors:
        tensors = widened(tensors, torch.float32)
        names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
        return tensors | dict.fromkeys(names, tensors["shared.weight"])

    path = as_bin(tmp_path / "bf16", tmp_path / "fp32", edit, shards=shards, zipped=zipped)
    found = assert_packs_as_stock(path, tmp_path / "store")
    assert set(found.casts) == {"F32"}
    files = {place.path for layer in found.layers for e in layer.experts for t in e for place in ranges_of(t.pieces)}
    assert all(isinstance(file, MemoryFile) for file in files) == (not zipped)
    assert len(files) == shards


def test_views_answer_as_stock(tmp_path: Path) -> None:
    """Experts that `torch.save` got transposed, sliced out of a wider matrix, or picked column by column."""
    save_checkpoint("qwen2_moe", tmp_path / "plain")

    def edit(tensors: Tensors) -> Tensors:
        for name, tensor in tensors.items():
            if tensor.ndim < 2:
                continue
            if "layers.0." in name or "embed" in name:
                tensors[name] = tensor.T.contiguous().T
            elif "layers.1." in name:
                tensors[name] = torch.cat([tensor, tensor], dim=1)[:, 3 : 3 + tensor.shape[1]]
            else:
                tensors[name] = torch.stack([tensor, tensor], dim=2)[:, :, 1]
        return tensors

    path = as_bin(tmp_path / "plain", tmp_path / "views", edit)
    found = assert_packs_as_stock(path, tmp_path / "store")
    pieces = [[piece for e in layer.experts for t in e for piece in t.pieces] for layer in found.layers]
    assert [{type(piece) for piece in of_layer} for of_layer in pieces] == [
        {TransposedPiece}, {ByteRange}, {ConvertedPiece},
    ]  # fmt: skip


def test_a_store_has_the_same_bytes_from_bin_as_from_safetensors(hub: HubCheckpoints, tmp_path: Path) -> None:
    options = PackOptions(codec=create_codec("zstd"))
    pack_store(catalogue(hub.get("gpt_oss")), tmp_path / "safetensors", options)
    for name, shards, zipped in (("one", 1, True), ("two", 2, True), ("old", 1, False)):
        path = as_bin(hub.get("gpt_oss"), tmp_path / f"{name}.d", shards=shards, zipped=zipped)
        pack_store(catalogue(path), tmp_path / name, options)
        assert tree(tmp_path / name) == tree(tmp_path / "safetensors")


def test_safetensors_are_preferred_and_the_single_file_to_the_index(
    hub: HubCheckpoints, sharded: Path, tmp_path: Path
) -> None:
    assert {entry.path.name for entry in open_checkpoint(sharded).tensors.values()} == set(SHARDS)
    shutil.copy(as_bin(hub.get("qwen2_moe"), tmp_path / "single") / BIN_FILE, sharded)
    assert {entry.path.name for entry in open_checkpoint(sharded).tensors.values()} == {BIN_FILE}
    for shard in hub.get("qwen2_moe").glob("*safetensors*"):
        shutil.copy(shard, sharded)
    assert {entry.path.suffix for entry in open_checkpoint(sharded).tensors.values()} == {".safetensors"}


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    with pytest.raises(NotFound, match=f"lacks 1 of 2 shards: {SHARDS[1]}"):
        catalogue(sharded)


def test_a_tensor_that_the_index_names_and_its_shard_lacks_is_named(sharded: Path) -> None:
    index = json.loads((sharded / BIN_INDEX_FILE).read_text())["weight_map"]
    write_index(sharded, {**index, "odd.weight": SHARDS[0]})
    with pytest.raises(NotFound, match=rf"1 tensors that {BIN_INDEX_FILE} lists .*'odd\.weight' in {SHARDS[0]}"):
        catalogue(sharded)


def test_of_a_tensor_in_two_shards_the_later_counts_as_in_stock(sharded: Path) -> None:
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    parts = [torch.load(sharded / shard, weights_only=True) for shard in SHARDS]
    for number, part in enumerate(parts):
        part[name] = torch.full_like(next(p[name] for p in parts if name in p), number)
        torch.save(part, sharded / SHARDS[number])
    found = catalogue(sharded)
    assert_same_as_stock(found, load_stock(sharded)[0])


def test_a_malicious_shard_is_refused_and_never_runs(sharded: Path, tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    torch.save({"model.norm.weight": CallOnLoad(exec, f"open({str(trap)!r}, 'w')")}, sharded / SHARDS[1])
    with pytest.raises(UnsupportedModel, match=f"{SHARDS[1]} holds more than weights"):
        catalogue(sharded)
    assert not trap.exists()


@pytest.mark.parametrize("name", [BIN_INDEX_FILE, SHARDS[0]])
def test_a_shard_that_is_no_regular_file_is_refused(sharded: Path, name: str) -> None:
    (sharded / name).unlink()
    (sharded / name).symlink_to("/dev/zero")
    with pytest.raises(InvalidRequest, match=f"{name} is a device"):
        catalogue(sharded)


def test_a_truncated_shard_is_refused(sharded: Path) -> None:
    shard = sharded / SHARDS[0]
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(CorruptData, match=f"{SHARDS[0]} cannot be used"):
        catalogue(sharded)
