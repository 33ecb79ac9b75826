"""The models that are measured, each in a folder with all the forms in which systems want it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from zipmoe.errors import InternalError, NotFound
from zipmoe.store.format.manifest import Manifest, read_manifest

SYNTH: Final = {
    "qwen2_moe": ("--layers", "8", "--true-widths", "--vocab", "32000"),
    "deepseek_v2": ("--layers", "8", "--true-widths", "--vocab", "32000"),
    "tiny": (),
}
"""Arguments of `zipmoe synth` after the family; `tiny` tries the benchmark out."""

WIDTHS: Final[Mapping[str, Mapping[str, Any]]] = {
    # GLM-4.7-Flash
    "glm4_moe_lite": {"model_type": "glm4_moe_lite", "num_hidden_layers": 4, "vocab_size": 32_000},
    # Gemma 4 26B-A4B; every sixth layer has full attention
    "gemma4": {
        "model_type": "gemma4_text",
        "num_hidden_layers": 6,
        "vocab_size": 32_000,
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "global_head_dim": 512,
        "num_global_key_value_heads": 2,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
    },
    # Qwen3.5-35B-A3B; every fourth layer has full attention
    "qwen3_5_moe": {"model_type": "qwen3_5_moe_text", "num_hidden_layers": 4, "vocab_size": 32_000},
}
"""Configurations of `benchmarks.peers.random_checkpoint`: true widths, few layers, transformers' defaults otherwise."""

MODELS: Final = (*SYNTH, *WIDTHS)
"""The models that are measured."""


@dataclass(frozen=True)
class PeerWork:
    """One model. The folder may hold a checkpoint of other sizes under `src`, which is then what is measured."""

    root: Path
    model: str
    stock: str = "stock"
    """How stock's choices are made, see `benchmarks.peers.reference`."""

    @property
    def folder(self) -> Path:
        """Where everything of the model is."""
        return self.root / self.model

    @property
    def src(self) -> Path:
        """The hub-format checkpoint."""
        return self.folder / "src"

    @property
    def store(self) -> Path:
        """The packed store."""
        return self.folder / "store"

    @property
    def gguf(self) -> Path:
        """The GGUF file; not every model has one."""
        return self.folder / "model.gguf"

    @property
    def reference(self) -> Path:
        """What stock makes of the jobs."""
        return self.folder / f"reference-{self.stock}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        try:
            config: dict[str, Any] = json.loads((self.src / "config.json").read_text())
        except FileNotFoundError as error:
            raise NotFound(f"there is no checkpoint in {self.src}") from error
        return config

    @cached_property
    def manifest(self) -> Manifest:
        """The store's manifest."""
        return read_manifest(self.store)

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.config["vocab_size"])

    @property
    def shards(self) -> list[Path]:
        """The checkpoint's weights."""
        return sorted(self.src.glob("*.safetensors"))

    @property
    def store_files(self) -> list[Path]:
        """The store's weights."""
        return sorted([*self.store.glob("experts-*.bin"), *self.store.glob("dense-*.safetensors")])

    @property
    def expert_files(self) -> list[Path]:
        """The store's experts."""
        return sorted(self.store.glob("experts-*.bin"))

    @property
    def expert_bytes(self) -> float:
        """Mean bytes of an expert in bf16."""
        layers = self.manifest.layers
        return sum(layer.spec.weight_bytes * layer.expert_count for layer in layers) / self.manifest.expert_count

    @property
    def dense_bytes(self) -> int:
        """Bytes of all other weights."""
        return self.model_bytes - round(self.expert_bytes * self.manifest.expert_count)

    @property
    def model_bytes(self) -> int:
        """Bytes of all weights in bf16."""
        return sum(shard.stat().st_size for shard in self.shards)

    def make(self, *, gguf: bool) -> None:
        """Makes what is not there yet: the checkpoint, the store and, if asked for, the GGUF file.

        Raises:
            InternalError: a step failed; its output has been shown.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.src / "config.json").exists():
            if self.model in WIDTHS:
                _run("benchmarks.peers.random_checkpoint", self.model, self.src)
            else:
                family = "qwen2_moe" if self.model == "tiny" else self.model
                _run("zipmoe.cli", "synth", family, self.src, *SYNTH[self.model])
        if not (self.store / "manifest.json").exists():
            _run("zipmoe.cli", "pack", self.src, self.store)
        if gguf and not self.gguf.exists():
            _run("benchmarks.peers.systems.gguf_file", self.src, self.gguf)


def _run(module: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    print("+", *command[1:], flush=True)
    ended = subprocess.run(command, check=False)
    if ended.returncode:
        raise InternalError(f"`{' '.join(command[1:])}` ended with {ended.returncode}", next_step="see its output")
