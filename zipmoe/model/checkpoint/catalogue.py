"""Classifies the tensors of a checkpoint into routed experts and dense tensors, for the packer and `verify`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.checkpoint import Checkpoint, open_checkpoint
from zipmoe.model.checkpoint.coverage import check_coverage, routed_groups
from zipmoe.model.checkpoint.dense_sources import DenseCatalogue, catalogue_dense
from zipmoe.model.checkpoint.expert_modules import ExpertsModule, find_experts
from zipmoe.model.checkpoint.key_plan import ConversionGroup, plan_keys
from zipmoe.model.checkpoint.row_trace import RowTracer
from zipmoe.model.checkpoint.skeleton import Skeleton, build_skeleton
from zipmoe.model.raw_tensor import DTYPES
from zipmoe.model.stock.cache_sizes import measure_sizes
from zipmoe.model.stock.experts_module import whole_layer_reason
from zipmoe.planning.kv_bytes import kv_bytes_per_token, text_part
from zipmoe.planning.memory_split import experts_per_token
from zipmoe.store.format.measured import MeasuredSizes
from zipmoe.store.pack.source import DenseTensor, LayerSource, TensorSource

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Catalogue:
    """A classified checkpoint, which the packer reads as an `ExpertSource`.

    Attributes:
        checkpoint: the opened directory.
        family: transformers' `model_type`.
        layers: the Mixture-of-Experts layers in forward order; the bytes are those of stock's loaded parameters.
        dense: all other tensors.
        unexpected_keys: checkpoint tensors that the model does not use; `from_pretrained` warns of the same tensors.
        casts: number of checkpoint tensors that `from_pretrained(dtype=torch.bfloat16)` casts to a dtype without all
            their values, by their dtype in the checkpoint, for example "F32".
    """

    checkpoint: Checkpoint
    family: str
    layers: tuple[LayerSource, ...]
    dense: DenseCatalogue
    unexpected_keys: tuple[str, ...]
    casts: Mapping[str, int]
    measured: MeasuredSizes | None
    left_out: tuple[str, ...]

    @property
    def dense_tensors(self) -> Iterable[DenseTensor]:
        """Dense tensors under the names of the model's state dict; tied tensors occur once. Iterable repeatedly."""
        return self.dense

    @property
    def model_files(self) -> tuple[Path, ...]:
        """config.json, tokenizer and generation files."""
        return self.checkpoint.model_files

    @property
    def chat_templates(self) -> tuple[Path, ...]:
        """The chat templates of the checkpoint's folder `additional_chat_templates`."""
        return self.checkpoint.chat_templates


def catalogue(path: Path) -> Catalogue:
    """Opens a hub checkpoint and finds every expert and every dense tensor in it.

    Args:
        path: the checkpoint directory. The content is not trusted, and no code of the directory runs.

    Raises:
        NotFound: the directory, its configuration, a shard, or a tensor that the model needs is missing.
        InvalidRequest: a file or the directory may not be read.
        CorruptData: malformed JSON, a truncated or malformed shard.
        UnsupportedModel: the family, a quantised checkpoint, routed weights of a dtype that is not cast to bf16, or
            tensors that do not make the model's parameters.
        BudgetInfeasible, ResourceExhausted: experts that have to be converted in memory need more memory than there is.

    Cost: reads headers, and the values of tied dense tensors that occur more than once; seconds, most of them for
        importing transformers.
    """
    checkpoint = open_checkpoint(path)
    skeleton = build_skeleton(checkpoint)
    plan = plan_keys(skeleton, checkpoint.tensors)
    modules = find_experts(skeleton)
    dense = catalogue_dense(skeleton, plan, {name for module in modules for name in module.parameters})
    routed = routed_groups(plan, modules, skeleton)
    check_coverage(skeleton, routed, modules, dense.names)
    tracer = RowTracer(skeleton)
    layers = tuple(_layer_source(module, routed, skeleton, tracer) for module in modules)
    if plan.unexpected_keys:
        _LOG.warning(
            "%d tensors of %s are not part of the model and are ignored, the first is %s",
            len(plan.unexpected_keys), path, plan.unexpected_keys[0],
        )  # fmt: skip
    casts = _count_casts(plan.groups.values(), skeleton)
    return Catalogue(
        checkpoint,
        skeleton.family,
        layers,
        dense,
        plan.unexpected_keys,
        casts,
        _measured(skeleton, checkpoint, modules),
        tuple(skeleton.towers),
    )


def _measured(skeleton: Skeleton, checkpoint: Checkpoint, modules: Sequence[ExpertsModule]) -> MeasuredSizes | None:
    """Measures the text model; None if the sizes are those that planning reads from config.json."""
    model = skeleton.model
    told = _told_sizes(checkpoint)
    found = None if model.config.is_encoder_decoder else measure_sizes(model)
    if (sizes := found or told) is None:
        return None
    stock_experts = any(whole_layer_reason(model.get_submodule(module.path)) for module in modules)
    sizes = replace(sizes, stock_experts=stock_experts)
    return None if sizes == told else sizes


def _told_sizes(checkpoint: Checkpoint) -> MeasuredSizes | None:
    """Returns the sizes that config.json tells; None if planning finds none there."""
    config = text_part(checkpoint.config)
    try:
        return MeasuredSizes(kv_bytes_per_token(config, "latent"), 0, experts_per_token(config))
    except UnsupportedModel:
        return None


def _layer_source(
    module: ExpertsModule, groups: Mapping[str, ConversionGroup], skeleton: Skeleton, tracer: RowTracer
) -> LayerSource:
    traced = {}
    for name, rows in sorted(_matrix_rows(module).items()):
        if (dtype := skeleton.dtype_of(name)) != torch.bfloat16:
            raise UnsupportedModel(f"transformers keeps the experts' matrix {name} in {dtype}, only bf16 is packed")
        traced[name] = tracer.trace_matrices(groups[name], name, rows, module.path)
    experts = tuple(
        tuple(TensorSource(matrix.spec, traced[matrix.parameter][matrix.index or 0]) for matrix in expert)
        for expert in module.experts
    )
    return LayerSource(module.path, experts)


def _matrix_rows(module: ExpertsModule) -> dict[str, int]:
    """Returns the rows of one expert's matrix for every parameter of the module."""
    return {matrix.parameter: matrix.spec.rows for expert in module.experts for matrix in expert}


def _count_casts(groups: Iterable[ConversionGroup], skeleton: Skeleton) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for group in groups:
        dtype = skeleton.dtype_of(group.target)
        counts.update(entry.dtype for _, entry in group.sources if not _holds_all(dtype, DTYPES[entry.dtype]))
    return dict(sorted(counts.items()))


def _holds_all(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether a dtype has every value of another dtype."""
    return dtype == other or (other.is_floating_point and torch.promote_types(dtype, other) == dtype)
