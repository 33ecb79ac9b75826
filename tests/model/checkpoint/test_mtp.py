"""Layers for multi-token prediction are packed on request: bit for bit what stock loads, and no byte otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers.modeling_layers import MtpModel

from tests.model.hub import HubCheckpoints, edit_checkpoint
from tests.model.mtp_checkpoint import FAMILIES, stock_with_mtp
from zipmoe.errors import NotFound, UnsupportedModel
from zipmoe.model.build.dense import dense_from_source
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.experts.provider import CheckpointProvider
from zipmoe.planning.kv_bytes import kv_bytes_per_token
from zipmoe.process.budgeted import read_model_config
from zipmoe.store.format.manifest import MTP_PREFIX, read_manifest
from zipmoe.store.pack.writer import PackOptions, pack_store
from zipmoe.store.verify.verify import verify_against


@pytest.mark.parametrize("mtp_layers", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_that_of_stock(
    family: str, packed: bool, mtp_layers: int, hub: HubCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub.get(family, mtp=True, packed=packed, overrides={"num_nextn_predict_layers": mtp_layers})
    found = catalogue(path, with_mtp=True)
    stock = MtpModel.from_pretrained(stock_with_mtp(path, monkeypatch))
    wanted = {
        name: tensor
        for name, tensor in stock.state_dict().items()
        if not name.startswith(("embed_tokens", "shared_head"))
    }
    ours = {
        name.removeprefix(MTP_PREFIX): tensor
        for name, tensor in dense_from_source(found.dense_tensors).items()
        if name.startswith(MTP_PREFIX)
    }
    provider = CheckpointProvider(found.layers)
    for number, layer in enumerate(found.layers):
        if layer.module.startswith(MTP_PREFIX):
            arrivals = provider.experts(number, dict.fromkeys(range(len(layer.experts)), 1))
            experts = {each.expert: each.matrices for each in arrivals}
            for place, spec in enumerate(layer.spec.tensors):
                stacked = torch.stack([experts[each][place] for each in range(len(experts))])
                ours[f"{layer.module.removeprefix(MTP_PREFIX)}.{spec.name}"] = stacked
    provider.close()
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    assert [layer.module.startswith(MTP_PREFIX) for layer in found.layers] == [False] * 2 + [True] * mtp_layers
    assert (found.mtp_layers, found.unpacked_mtp, found.unexpected_keys) == (mtp_layers, 0, ())


def test_without_the_request_a_store_is_that_of_a_checkpoint_without_the_layers(
    hub: HubCheckpoints, tmp_path: Path
) -> None:
    whole = hub.get("glm4_moe", mtp=True)
    bare = edit_checkpoint(
        whole, tmp_path / "bare", lambda tensors: {k: v for k, v in tensors.items() if ".layers.3." not in k}
    )
    found = catalogue(whole)
    assert found.unpacked_mtp > 20
    pack_store(found, tmp_path / "one", PackOptions(workers=1))
    pack_store(catalogue(bare), tmp_path / "other", PackOptions(workers=1))
    assert _contents(tmp_path / "one") == _contents(tmp_path / "other")
    assert "mtp_layers" not in json.loads((tmp_path / "one" / "manifest.json").read_bytes())


def test_a_store_with_the_layers_is_deterministic_resumable_and_verified(hub: HubCheckpoints, tmp_path: Path) -> None:
    path = hub.get("deepseek_v3", mtp=True)
    pack_store(catalogue(path, with_mtp=True), tmp_path / "one", PackOptions(workers=1))
    moved = Path(shutil.copytree(path, tmp_path / "moved"))

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_store(catalogue(moved, with_mtp=True), tmp_path / "other", PackOptions(workers=2), stop)
    pack_store(catalogue(moved, with_mtp=True), tmp_path / "other", PackOptions(workers=2))
    assert _contents(tmp_path / "one") == _contents(tmp_path / "other")
    manifest = read_manifest(tmp_path / "one")
    assert (manifest.version, manifest.mtp_layers, len(manifest.layers)) == (1, 1, 3)
    assert verify_against(tmp_path / "one", catalogue(path, with_mtp=True)).intact
    assert not verify_against(tmp_path / "one", catalogue(path)).intact


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["expanded", "latent"])
def test_the_memory_split_counts_the_cache_of_the_layers(
    family: str, form: str, hub: HubCheckpoints, tmp_path: Path
) -> None:
    path = hub.get(family, mtp=True)
    pack_store(catalogue(path), tmp_path / "plain", PackOptions(workers=1))
    pack_store(catalogue(path, with_mtp=True), tmp_path / "mtp", PackOptions(workers=1))
    sizes = []
    for name in ("plain", "mtp"):
        manifest = read_manifest(tmp_path / name)
        sizes.append(kv_bytes_per_token(read_model_config(tmp_path / name, manifest), form))  # type: ignore[arg-type]
    assert sizes[1] * 3 == sizes[0] * 4  # three layers and one more


def test_a_checkpoint_that_lacks_a_tensor_of_the_layers_is_refused(hub: HubCheckpoints, tmp_path: Path) -> None:
    path = edit_checkpoint(
        hub.get("glm4_moe", mtp=True), tmp_path / "c",
        lambda tensors: {k: v for k, v in tensors.items() if "layers.3.mlp.experts.5.up_proj" not in k},
    )  # fmt: skip
    with pytest.raises(NotFound, match=r"lacks 1 tensors of the model: .*mlp\.experts\.5\.up_proj\.weight"):
        catalogue(path, with_mtp=True)
    assert catalogue(path).unpacked_mtp > 20


def test_the_layers_of_a_model_without_any_are_refused(hub: HubCheckpoints) -> None:
    with pytest.raises(UnsupportedModel, match="no num_mtp_layers"):
        catalogue(hub.get("qwen2_moe"), with_mtp=True)
    with pytest.raises(NotFound, match="states 1 layers for multi-token prediction, but"):
        catalogue(hub.get("glm4_moe"), with_mtp=True)


def _contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir() if file.is_file()}
