"""Classifies the tensors of a checkpoint into routed experts and dense tensors, for the packer and `verify`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from zipmoe.errors import NotFound, UnsupportedModel
from zipmoe.model.checkpoint.checkpoint import Checkpoint, open_checkpoint
from zipmoe.model.checkpoint.coverage import check_coverage, routed_groups
from zipmoe.model.checkpoint.dense_sources import DenseCatalogue, catalogue_dense
from zipmoe.model.checkpoint.expert_modules import ExpertsModule, find_experts
from zipmoe.model.checkpoint.key_plan import ConversionGroup, KeyPlan, plan_keys
from zipmoe.model.checkpoint.row_trace import RowTracer
from zipmoe.model.checkpoint.skeleton import Skeleton, build_skeleton, mtp_skeleton
from zipmoe.model.raw_tensor import DTYPES
from zipmoe.model.stock.cache_sizes import measure_sizes
from zipmoe.model.stock.experts_module import whole_layer_reason
from zipmoe.model.stock.mtp import WITHOUT_MTP, mtp_layer_count
from zipmoe.planning.kv_bytes import kv_bytes_per_token, text_part
from zipmoe.planning.memory_split import experts_per_token
from zipmoe.store.format.manifest import MTP_PREFIX
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
            Those of MTP layers are not named.
        casts: number of checkpoint tensors that `from_pretrained(dtype=torch.bfloat16)` casts to a dtype without all
            their values, by their dtype in the checkpoint, for example "F32".
        measured: sizes of the text model.
        left_out: paths of the towers that are left out.
        mtp_layers: layers for multi-token prediction that `layers` and `dense` include, behind those of the model.
        unpacked_mtp: tensors of MTP layers in the checkpoint that they do not include.
    """

    checkpoint: Checkpoint
    family: str
    layers: tuple[LayerSource, ...]
    dense: DenseCatalogue
    unexpected_keys: tuple[str, ...]
    casts: Mapping[str, int]
    measured: MeasuredSizes | None
    left_out: tuple[str, ...]
    mtp_layers: int = 0
    unpacked_mtp: int = 0

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


@dataclass(frozen=True)
class _Classified:
    """The classified tensors of a model, or of its MTP layers."""

    modules: tuple[ExpertsModule, ...]
    layers: tuple[LayerSource, ...]
    dense: tuple[DenseTensor, ...]
    casts: Counter[str]

    @classmethod
    def of(cls, skeleton: Skeleton, plan: KeyPlan, prefix: str = "") -> _Classified:
        """Classifies the tensors of a plan; names in the store begin with `prefix`."""
        modules = find_experts(skeleton)
        dense = catalogue_dense(skeleton, plan, {name for module in modules for name in module.parameters})
        routed = routed_groups(plan, modules, skeleton)
        check_coverage(skeleton, routed, modules, dense.names)
        tracer = RowTracer(skeleton)
        layers = (_layer_source(module, routed, skeleton, tracer) for module in modules)
        return cls(
            modules,
            tuple(replace(layer, module=prefix + layer.module) for layer in layers),
            tuple(replace(tensor, name=prefix + tensor.name) for tensor in dense),
            _count_casts(plan.groups.values(), skeleton),
        )


def catalogue(path: Path, *, with_mtp: bool = False) -> Catalogue:
    """Opens a hub checkpoint and finds every expert and every dense tensor in it.

    Args:
        path: the checkpoint directory. The content is not trusted, and no code of the directory runs.
        with_mtp: whether to include the layers for multi-token prediction, under names that begin with `MTP_PREFIX`.

    Raises:
        NotFound: the directory, its configuration, a shard, or a tensor that the model needs is missing; or there are
            no MTP layers.
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
    parts = [_Classified.of(skeleton, plan)]
    mtp, mtp_plan = _plan_mtp(skeleton, checkpoint, plan, wanted=with_mtp)
    if with_mtp:
        parts.append(_Classified.of(mtp, mtp_plan, MTP_PREFIX))
    unexpected = tuple(key for key in plan.unexpected_keys if key in mtp_plan.unexpected_keys)
    if unexpected:
        _LOG.warning(
            "%d tensors of %s are not part of the model and are ignored, the first is %s",
            len(unexpected), path, unexpected[0],
        )  # fmt: skip
    return Catalogue(
        checkpoint,
        skeleton.family,
        tuple(layer for part in parts for layer in part.layers),
        DenseCatalogue(tuple(tensor for part in parts for tensor in part.dense)),
        unexpected,
        dict(sorted(sum((part.casts for part in parts), Counter()).items())),
        _measured(skeleton, checkpoint, parts[0].modules),
        tuple(skeleton.towers),
        mtp_layers=mtp_layer_count(skeleton.model.config) if with_mtp else 0,
        unpacked_mtp=0 if with_mtp else len(plan.unused_keys) - len(mtp_plan.unused_keys),
    )


def _plan_mtp(skeleton: Skeleton, checkpoint: Checkpoint, plan: KeyPlan, *, wanted: bool) -> tuple[Skeleton, KeyPlan]:
    """Assigns the tensors that a model leaves to its MTP layers, by transformers' names for these.

    Returns:
        The MTP layers and their tensors. Unless `wanted`, layers without tensors if there are none.

    Raises:
        NotFound, UnsupportedModel: there are none, or transformers constructs none, and they are wanted.
    """
    none = skeleton, KeyPlan({}, plan.unused_keys, plan.unused_keys)
    if not mtp_layer_count(skeleton.model.config):
        if wanted:
            raise UnsupportedModel(
                f"the configuration of this {skeleton.family} model states no layers for multi-token prediction: "
                "it has no num_mtp_layers of transformers",
                next_step=WITHOUT_MTP,
            )
        return none
    try:
        mtp = mtp_skeleton(skeleton)
    except UnsupportedModel:
        if wanted:
            raise
        return none
    found = plan_keys(mtp, checkpoint.tensors, plan.unused_keys)
    if wanted and not found.groups:
        raise NotFound(
            f"config.json states {mtp_layer_count(skeleton.model.config)} layers for multi-token prediction, but the "
            "checkpoint has no tensor of them",
            next_step=WITHOUT_MTP,
        )
    return mtp, found


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


def _count_casts(groups: Iterable[ConversionGroup], skeleton: Skeleton) -> Counter[str]:
    counts: Counter[str] = Counter()
    for group in groups:
        dtype = skeleton.dtype_of(group.target)
        counts.update(entry.dtype for _, entry in group.sources if not _holds_all(dtype, DTYPES[entry.dtype]))
    return counts


def _holds_all(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether a dtype has every value of another dtype."""
    return dtype == other or (other.is_floating_point and torch.promote_types(dtype, other) == dtype)
