"""Tiny checkpoints with layers for multi-token prediction (MTP) whose drafts come true often, but not always."""

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

_OUTPUTS = re.compile(r"model\.layers\.\d+\..*(o_proj|down_proj)\.weight")
_SHARED = re.compile(r"model\.layers\.\d+\.(embed_tokens|shared_head\.head)\.weight")
_LAYERS = 3
_SETTINGS: dict[str, dict[str, Any]] = {"deepseek_v3": {"kv_lora_rank": 64}}
"""With less, oneDNN leaves an expansion of few rows to torch's own code, and latents are cached."""


def write_mtp_checkpoint(family: str, path: Path, *, mtp_layers: int = 1) -> Path:
    """Writes a checkpoint whose layers add little to the residual stream, and whose MTP layers pass the token on.

    So the model's choice depends mostly on the last token, and the MTP layers see that token.
    """
    overrides = {"num_nextn_predict_layers": mtp_layers, **_SETTINGS.get(family, {})}
    synthesise(family, path, mtp=True, overrides=overrides)
    for shard in sorted(path.glob("*.safetensors")):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            if _OUTPUTS.fullmatch(name):
                tensor.mul_(0.15)
            elif name == "model.embed_tokens.weight":
                tensor.mul_(8)  # to the size that norms give
            elif name.endswith("eh_proj.weight"):
                tensor.mul_(0.15)
                tensor[:, : tensor.shape[0]] += torch.eye(tensor.shape[0])
            elif _SHARED.fullmatch(name):
                tensor.zero_()  # stock takes those of the model
        save_file(tensors, shard, metadata={"format": "pt"})
    return path


def stock_with_mtp(path: Path, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """Loads stock's model such that `generate(use_mtp=True)` finds the MTP layers behind few layers."""
    stock = load_stock(path)
    numbers = "|".join(str(_LAYERS + index) for index in range(int(stock.config.num_mtp_layers)))
    monkeypatch.setattr(stock, "_keys_to_ignore_on_load_unexpected", [rf"model\.layers\.({numbers})\..*"])
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
