"""The models that compute with torch, by how they hold their experts. Eager throughout, as stock is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig

from benchmarks.peers.memory import kv_bytes
from benchmarks.peers.systems.lru_experts import LruExperts, slot_bytes
from benchmarks.peers.systems.mapped_experts import MappedExperts, ResidentExperts
from zipmoe.cli.showing.stock import load_stock
from zipmoe.model.build.build import build_from_checkpoint
from zipmoe.model.checkpoint.catalogue import Catalogue, catalogue
from zipmoe.model.experts.provider import ExpertProvider
from zipmoe.model.linear.native_linear import Linears

MARGIN_BYTES: Final = 320 << 20
"""What `lru` leaves of its limit for activations, allocators and the kernel's own use."""

OFFLOAD_RESERVE_BYTES: Final = 3 << 29
"""What `offload` leaves of its limit for its process and for the page cache of what is offloaded."""


class Options(Protocol):
    """What a worker was started with."""

    src: Path
    scratch: Path
    limit_bytes: int
    batch: int
    tokens: int
    threads: int


@dataclass(frozen=True)
class TorchModel:
    """A model that is ready.

    Attributes:
        model: transformers' own.
        facts: what the run's record says of it.
    """

    model: Any
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        config: PreTrainedConfig = self.model.config
        return config

    def forward(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Appends tokens, shape (batch, tokens), and computes the logits after the last, shape (batch, vocabulary)."""
        output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def on_routed(self, modules: Sequence[str], note: Callable[[int, torch.Tensor], None]) -> None:
        """Has `note` told the ordinal of the layer and the experts chosen, shape (tokens, k), in every pass."""
        for layer, name in enumerate(modules):
            module = self.model.get_submodule(name)
            module.register_forward_pre_hook(lambda _, inputs, layer=layer: note(layer, inputs[1]))


def load(kind: str, options: Options) -> TorchModel:
    """Loads a model in one of the ways in `LOADERS`."""
    torch.set_num_threads(options.threads)
    overhead_bytes = anonymous_bytes()
    loaded = LOADERS[kind](options)
    return TorchModel(loaded.model, {"overhead_bytes": overhead_bytes, **loaded.facts})


def load_mapped(options: Options) -> TorchModel:
    """Transformers with experts as views of mapped shards; dense weights in memory."""
    source = catalogue(options.src)
    return _built(options, source, MappedExperts(source.layers))


def load_lru(options: Options) -> TorchModel:
    """Experts in as many slots as the limit has room for."""
    source = catalogue(options.src)
    other_bytes = source.dense.nbytes + 2 * kv_bytes(source.checkpoint.config, options.batch * options.tokens)
    left = options.limit_bytes - anonymous_bytes() - other_bytes - MARGIN_BYTES
    expert_count = sum(len(layer.experts) for layer in source.layers)
    slots = min(expert_count, left // slot_bytes(source.layers))
    return _built(options, source, LruExperts(source.layers, slots), slots=slots)


def load_floor(options: Options) -> TorchModel:
    """This system's kernels with everything in memory: no service, no read, no message."""
    source = catalogue(options.src)
    experts = ResidentExperts(source.layers)
    built = build_from_checkpoint(options.src, source, experts, Linears())
    return TorchModel(built.model, {"linears": str(built.linears)})


def load_offloaded(options: Options) -> TorchModel:
    """Accelerate's disk offload, as `from_pretrained` sets it up."""
    model = AutoModelForCausalLM.from_pretrained(
        options.src,
        dtype=torch.bfloat16,
        attn_implementation="eager",
        experts_implementation="eager",
        device_map="auto",
        max_memory={"cpu": max(options.limit_bytes - OFFLOAD_RESERVE_BYTES, 1)},
        offload_folder=options.scratch,
    )
    model.train(False)
    devices = [str(device) for device in getattr(model, "hf_device_map", {}).values()]
    return TorchModel(model, {"modules_on_disk": devices.count("disk"), "modules_in_memory": devices.count("cpu")})


def load_reference(options: Options) -> TorchModel:
    """Stock transformers, all in memory."""
    return TorchModel(load_stock(options.src))


LOADERS: Final[dict[str, Callable[[Options], TorchModel]]] = {
    "mapped": load_mapped,
    "lru": load_lru,
    "offload": load_offloaded,
    "floor": load_floor,
    "stock": load_reference,
}


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no RssAnon")


def _built(options: Options, source: Catalogue, experts: ExpertProvider, **facts: Any) -> TorchModel:
    built = build_from_checkpoint(options.src, source, experts)
    return TorchModel(built.model, {**facts, "dense_locked": built.dense.locked})
