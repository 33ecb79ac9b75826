"""Builds the served model: transformers' own code, with dense weights in memory and without routed experts.

The docstring of the package lists everything of stock that the build replaces.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from zipmoe.errors import PACK_ANEW, UnsupportedModel
from zipmoe.model.build.context import context_tokens
from zipmoe.model.build.dense import DenseFiles, DenseMemory, DenseWeights, dense_from_source, lock_in_memory
from zipmoe.model.build.dense_assignment import assign_dense, check_complete, check_unchanged
from zipmoe.model.build.dense_forms import DenseCompression, DenseForms
from zipmoe.model.checkpoint.skeleton import read_config, skeleton_of
from zipmoe.model.experts.device import ExpertPlacement, HostPlacement
from zipmoe.model.experts.ffn import ExpertFfn, check_matrices, dense_names
from zipmoe.model.experts.lazy_experts import LazyExperts
from zipmoe.model.experts.next_gate import NextGate, find_gate
from zipmoe.model.experts.overlap import Overlap, announce_first, overlapped_shared
from zipmoe.model.experts.proof import kind_of, prove_ffn
from zipmoe.model.experts.provider import ExpertProvider
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.experts.supply import ExpertSupply
from zipmoe.model.linear.linear_module import replace_linears
from zipmoe.model.linear.native_linear import LinearReport, Linears
from zipmoe.model.stock.generation_settings import read_generation_config
from zipmoe.model.stock.initialisation import refill_buffers
from zipmoe.model.stock.mtp import construct_mtp, move_behind, share_modules
from zipmoe.planning.memory_split import experts_per_token
from zipmoe.residency.guess_control import MOST_AHEAD
from zipmoe.store.format.entries import LayerEntry
from zipmoe.store.format.manifest import MTP_PREFIX, Manifest
from zipmoe.store.pack.source import ExpertSource

ExpertsLayer = RoutedExperts | LazyExperts
"""The routed experts of a layer: computed one by one, or by stock's own code."""


@dataclass(frozen=True)
class BuiltModel:
    """A model that is ready to compute. The provider has to deliver the experts. Thread: one at a time."""

    model: PreTrainedModel
    generation_config: GenerationConfig
    placement: ExpertPlacement
    layers: tuple[LayerEntry, ...]
    experts: tuple[ExpertsLayer, ...]
    """The modules that request experts from the provider, in forward order. Those of `mtp` are the last ones."""

    dense: DenseMemory
    context_tokens: int
    """The most tokens of prompt and answer together. For an encoder-decoder, the most tokens of each."""

    mtp: PreTrainedModel | None
    """The layers for multi-token prediction; None if the store holds none."""

    linears: LinearReport | None
    """Report of the linears that the kernels compute. None without `Linears` and on a GPU: torch computes them."""

    dense_forms: DenseForms = field(default_factory=DenseForms)
    """Forms of the matrices of linears. Empty unless they were to be compressed."""

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, equal to the length of a row of logits."""
        return int(self.config.get_text_config(decoder=True).vocab_size)

    @property
    def encoder_decoder(self) -> bool:
        """Whether prompt and answer are separate sequences."""
        return bool(self.config.is_encoder_decoder)


def build_from_store(
    store: Path,
    manifest: Manifest,
    provider: ExpertProvider,
    placement: ExpertPlacement,
    linears: Linears | None = None,
    *,
    compress_dense: bool = False,
) -> BuiltModel:
    """Builds the model of a packed store; raises as `build_model` and `DenseFiles.items` do."""
    dense = DenseFiles(store, manifest.dense)
    return build_model(store, manifest.layers, dense, provider, placement, linears, compress_dense=compress_dense)


def build_from_checkpoint(
    path: Path, source: ExpertSource, provider: ExpertProvider, linears: Linears | None = None
) -> BuiltModel:
    """Builds the model of a checkpoint that has not been packed; raises as `build_model` does."""
    layers = [LayerEntry(layer.module, layer.spec, len(layer.experts)) for layer in source.layers]
    dense = dense_from_source(source.dense_tensors)
    return build_model(path, layers, dense, provider, HostPlacement(), linears)


def build_model(
    path: Path,
    layers: Sequence[LayerEntry],
    dense: DenseWeights,
    provider: ExpertProvider,
    placement: ExpertPlacement,
    linears: Linears | None = None,
    *,
    compress_dense: bool = False,
) -> BuiltModel:
    """Builds a model with the logits of stock `from_pretrained(dtype=bfloat16)`, with eager code throughout.

    Args:
        path: a directory with config.json and, if the model has them, generation and tokenizer files.
        layers: the MoE layers in forward order.
        dense: every other weight by name in the state dict; one of several tied weights is enough. The model takes
            over the tensors where dtype and device allow, without a copy.
        provider: source of the experts.
        placement: device that computes, and the way of expert matrices to the device.
        linears: computes bf16 linears with torch's bits; None for torch. Ignored unless the device is the CPU.
        compress_dense: whether `linears` keeps matrices in the machine's in-memory form, as far as that leaves torch's
            bits. `BuiltModel.dense_forms` says what was compressed and why the rest was not.

    Raises:
        UnsupportedModel: transformers refuses the configuration, or the model has other modules than `layers` says.
        NotFound: a dense weight is missing; names the first ones.
        CorruptData: a dense weight has another shape than the model.

    Cost: two passes over the dense weights beside their assignment, for the checksums.
    """
    model = _construct(path)
    mtp = _add_mtp(model) if any(name.startswith(MTP_PREFIX) for name in dense) else None
    report = None
    if placement.device.type != "cpu":
        linears = None
    if linears is not None:
        report = linears.self_test([*replace_linears(model, linears), *_expert_shapes(layers)])
    experts = _replace_experts(model, layers, ExpertSupply(provider, placement), linears)
    # First the buffers: stock's initialisation of a module that owns one draws the weights of that module anew.
    refill_buffers(model, placement.device)
    compression = DenseCompression(model, linears) if linears is not None and compress_dense else None
    sums = assign_dense(model, dense, placement.device, compression)
    check_complete(model)
    check_unchanged(model, sums)
    if mtp is not None:
        share_modules(mtp, model)
    if compression is not None:
        compression.finish(model)
    nn.Module.eval(model)
    generation_config = read_generation_config(path, model)
    model.generation_config = generation_config
    return BuiltModel(
        model=model,
        generation_config=generation_config,
        placement=placement,
        layers=tuple(layers),
        experts=experts,
        dense=lock_in_memory([*model.parameters(), *model.buffers()]),
        context_tokens=context_tokens(model.config, path),
        mtp=mtp,
        linears=report,
        dense_forms=DenseForms() if compression is None else compression.report,
    )


def _construct(path: Path) -> PreTrainedModel:
    """Builds the model on the meta device, with eager code and without the towers of a multimodal model."""
    # Parameters require gradients as stock's do, although no gradient is ever computed. Torch folds a batch into one
    # product with such a weight. Without it, torch copies the whole weight for the row that a prefill keeps for logits.
    return skeleton_of("", read_config(path), str(path)).model


def _add_mtp(model: PreTrainedModel) -> PreTrainedModel:
    """Adds the layers for multi-token prediction to a model, under the name that their tensors have in a store."""
    mtp = construct_mtp(model)
    move_behind(mtp, model)
    model.add_module(MTP_PREFIX.rstrip("."), mtp)
    return mtp


def _expert_shapes(layers: Sequence[LayerEntry]) -> Iterator[tuple[int, int, bool]]:
    """Yields the linears of the experts: outputs, inputs, no bias."""
    for spec in dict.fromkeys(layer.spec for layer in layers):
        for tensor in spec.tensors:
            yield tensor.rows, tensor.cols, False


def _replace_experts(
    model: PreTrainedModel, layers: Sequence[LayerEntry], supply: ExpertSupply, linears: Linears | None
) -> tuple[ExpertsLayer, ...]:
    """Puts our modules in the place of the routed experts, and lets shared experts overlap with the reads."""
    ways = _ways_to_compute(model, layers, supply.placement.device, linears)
    gates = _gates(model, layers, ways, linears)
    replaced: list[ExpertsLayer] = []
    for ordinal, (layer, way) in enumerate(zip(layers, ways, strict=True)):
        stock_experts = model.get_submodule(layer.module)
        if isinstance(way, UnsupportedModel):
            lazy = LazyExperts(ordinal, layer.expert_count, stock_experts, layer.spec, supply, way.message)
            replaced.append(lazy)
            continue
        block = model.get_submodule(layer.module.rpartition(".")[0])
        dense = {name: stock_experts.get_parameter(name) for name in dense_names(stock_experts, layer.spec)}
        experts = RoutedExperts(ordinal, way, supply, dense, Overlap(gates[ordinal], overlapped_shared(block)))
        announce_first(block, experts.announce)
        model.set_submodule(layer.module, experts)
        replaced.append(experts)
    return tuple(replaced)


def _ways_to_compute(
    model: PreTrainedModel, layers: Sequence[LayerEntry], device: torch.device, linears: Linears | None
) -> list[ExpertFfn | UnsupportedModel]:
    """Finds for each layer the computation of one expert, or the reason why only stock's own module computes them."""
    found: dict[Hashable, ExpertFfn | UnsupportedModel] = {}
    ways = []
    for layer in layers:
        try:
            stock_experts = model.get_submodule(layer.module)
        except AttributeError as error:
            raise UnsupportedModel(
                f"{type(model).__name__} has no module {layer.module}", next_step=PACK_ANEW
            ) from error
        check_matrices(stock_experts, layer.spec)
        kind = kind_of(stock_experts, layer.spec)
        if kind not in found:
            try:
                found[kind] = prove_ffn(stock_experts, layer.spec, device, linears)
            except UnsupportedModel as reason:
                found[kind] = reason
        ways.append(found[kind])
    return ways


def _gates(
    model: PreTrainedModel,
    layers: Sequence[LayerEntry],
    ways: Sequence[ExpertFfn | UnsupportedModel],
    linears: Linears | None,
) -> list[tuple[NextGate, ...]]:
    """Finds for each MoE layer its own gate and the gates of the following layers, to predict experts for prefetches.

    Encoder and decoder are separate stacks: the encoder's last layer predicts nothing for the decoder. The first layer
    without a known gate ends a list.
    """
    config = model.config.get_text_config(decoder=True)
    hidden = int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 0))
    chosen = experts_per_token(config.to_dict())
    gates: list[tuple[NextGate, ...]] = []
    behind: dict[str, tuple[NextGate, ...]] = {}  # by stack: the gates from the layer behind on
    for layer, way in zip(reversed(layers), reversed(ways), strict=True):
        stack = layer.module.partition(".")[0]
        path, _, name = layer.module.rpartition(".")
        found = find_gate(model.get_submodule(path), name, (layer.expert_count, hidden))
        if found is None or isinstance(way, UnsupportedModel):
            behind[stack] = ()
        else:
            following = behind.get(stack, ())[:MOST_AHEAD]
            behind[stack] = (NextGate(*found, chosen, linears), *following)
        gates.append(behind[stack])
    return gates[::-1]
