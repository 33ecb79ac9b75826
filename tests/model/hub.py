"""Synthetic hub checkpoints for tests: made once a session, loaded by stock transformers, and edited."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from zipmoe.model.checkpoint.catalogue import Catalogue
from zipmoe.model.synth.writer import synthesise
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import Piece

Tensors = dict[str, torch.Tensor]


class HubCheckpoints:
    """Tiny checkpoints by family and layout, each made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, family: str, **options: Any) -> Path:
        path = self._root / "-".join([family, *(f"{key}={value}" for key, value in sorted(options.items()))])
        if not path.exists():
            synthesise(family, path, **options)
        return path


def load_stock(path: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model as `from_pretrained` loads it in bf16, and what it says about keys that did not match."""
    config = AutoConfig.from_pretrained(path)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto_class.from_pretrained(path, dtype=torch.bfloat16, output_loading_info=True)


def edit_checkpoint(source: Path, target: Path, edit: Callable[[Tensors], Tensors]) -> Path:
    """Writes a copy whose tensors went through `edit`, in a single file."""
    tensors: Tensors = {}
    for shard in sorted(source.glob("*.safetensors")):
        tensors.update(load_file(shard))
    copy_without_weights(source, target)
    save_file(edit(tensors), target / "model.safetensors", {"format": "pt"})
    return target


def copy_without_weights(source: Path, target: Path) -> None:
    target.mkdir()
    for file in source.iterdir():
        if "safetensors" not in file.name:
            shutil.copy(file, target)


def edit_config(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **values}))


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read(pieces: Sequence[Piece]) -> bytes:
    content = bytearray(sum(piece.nbytes for piece in pieces))
    with closing(PieceReader()) as reader:
        reader.read(pieces, memoryview(content))
    return bytes(content)


def assert_same_as_stock(catalogue: Catalogue, model: PreTrainedModel) -> None:
    """Every expert's matrix and every dense tensor has the bytes of the loaded model's parameter."""
    state = dict(model.state_dict())
    for layer in catalogue.layers:
        for expert_index, expert in enumerate(layer.experts):
            for matrix in expert:
                if f"{layer.module}.{matrix.spec.name}" in state:
                    loaded = state[f"{layer.module}.{matrix.spec.name}"][expert_index]
                else:
                    loaded = state.pop(f"{layer.module}.expert_{expert_index}.{matrix.spec.name}")
                assert (matrix.spec.rows, matrix.spec.cols) == tuple(loaded.shape)
                assert read(matrix.pieces) == bytes_of(loaded)
        for matrix in layer.experts[0]:
            state.pop(f"{layer.module}.{matrix.spec.name}", None)
    dense = {tensor.name: tensor for tensor in catalogue.dense_tensors}
    for name, tensor in dense.items():
        loaded = state.pop(name)
        assert tensor.shape == tuple(loaded.shape)
        assert read(tensor.pieces) == bytes_of(loaded)
        assert tensor.nbytes == len(bytes_of(loaded))
    # What is left of the model shares memory with something that was compared.
    compared = {model.state_dict()[name].data_ptr() for name in dense}
    assert {tensor.data_ptr() for tensor in state.values()} <= compared
