"""Tiny checkpoints with layers for multi-token prediction whose drafts come true often, but not always."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.model.conftest import Twin
from tests.model.tiny import load_stock
from zipmoe.model.build.build import build_model
from zipmoe.model.build.dense import dense_from_source
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.experts.device import HostPlacement
from zipmoe.model.experts.provider import CheckpointProvider
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.synth.writer import synthesise
from zipmoe.store.format.entries import LayerEntry

FAMILIES = ("deepseek_v3", "glm4_moe")
LAYERS = 3

_OUTPUTS = re.compile(r"model\.layers\.\d+\..*(o_proj|down_proj)\.weight")
_SHARED = re.compile(r"model\.layers\.\d+\.(embed_tokens|shared_head\.head)\.weight")


def write_mtp_checkpoint(family: str, path: Path, *, mtp_layers: int = 1, seed: int = 0, scale: float = 0.15) -> Path:
    """Writes a checkpoint whose layers add little to the residual stream, and whose MTP layers pass the token on.

    So the model's choice depends mostly on the last token, and the MTP layers see that token.
    """
    settings: dict[str, Any] = {"num_nextn_predict_layers": mtp_layers, "kv_lora_rank": 64}
    synthesise(family, path, seed=seed, mtp=True, overrides=settings if "deepseek" in family else dict([*settings.items()][:1]))
    for shard in sorted(path.glob("*.safetensors")):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            if _OUTPUTS.fullmatch(name):
                tensor.mul_(scale)
            elif name == "model.embed_tokens.weight":
                tensor.mul_(8)  # to the size that norms give
            elif name.endswith("eh_proj.weight"):
                tensor.mul_(scale)
                tensor[:, : tensor.shape[0]] += torch.eye(tensor.shape[0])
            elif _SHARED.fullmatch(name):
                tensor.zero_()  # stock takes those of the model
        save_file(tensors, shard, metadata={"format": "pt"})
    return path


def stock_with_mtp(path: Path, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """Loads stock's model such that `generate(use_mtp=True)` finds the layers of a model with few layers."""
    stock = load_stock(path)
    numbers = "|".join(str(LAYERS + index) for index in range(int(stock.config.num_mtp_layers)))
    patterns = [rf"model\.layers\.({numbers})\..*"]
    monkeypatch.setattr(stock, "_keys_to_ignore_on_load_unexpected", patterns)
    return stock


def mtp_twin(path: Path) -> Twin:
    """Our model of a checkpoint with its MTP layers, and stock's without."""
    found = catalogue(path, with_mtp=True)
    layers = [LayerEntry(layer.module, layer.spec, len(layer.experts)) for layer in found.layers]
    dense = dense_from_source(found.dense_tensors)
    provider: Any = CheckpointProvider(found.layers)
    linears = Linears()
    built = build_model(path, layers, dense, provider, HostPlacement(), linears)
    return Twin(path, load_stock(path), layers, dense, provider, built, linears)
