"""Classifies the tensors of a checkpoint into routed experts and dense tensors, for the packer and `verify`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.checkpoint import Checkpoint, open_checkpoint
from zipmoe.model.checkpoint.coverage import check_coverage
from zipmoe.model.checkpoint.dense_sources import DenseCatalogue, catalogue_dense
from zipmoe.model.checkpoint.expert_modules import ExpertsModule, find_experts
from zipmoe.model.checkpoint.key_plan import ConversionGroup, plan_keys
from zipmoe.model.checkpoint.row_trace import RowTracer
from zipmoe.model.checkpoint.skeleton import Skeleton, build_skeleton
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
    """

    checkpoint: Checkpoint
    family: str
    layers: tuple[LayerSource, ...]
    dense: DenseCatalogue
    unexpected_keys: tuple[str, ...]

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
        UnsupportedModel: the family, a quantised checkpoint, routed weights that are not bf16, or a layout that cannot
            be expressed as rows of the checkpoint's tensors.

    Cost: reads headers, and the values of tied dense tensors that occur more than once; seconds, most of them for
        importing transformers.
    """
    checkpoint = open_checkpoint(path)
    skeleton = build_skeleton(checkpoint)
    plan = plan_keys(skeleton, checkpoint.tensors)
    modules = find_experts(skeleton)
    dense = catalogue_dense(skeleton, plan, {name for module in modules for name in module.parameters})
    check_coverage(skeleton, plan, modules, dense.names)
    tracer = RowTracer(skeleton)
    layers = tuple(_layer_source(module, plan.groups, skeleton, tracer) for module in modules)
    if plan.unexpected_keys:
        _LOG.warning(
            "%d tensors of %s are not part of the model and are ignored, the first is %s",
            len(plan.unexpected_keys), path, plan.unexpected_keys[0],
        )  # fmt: skip
    return Catalogue(checkpoint, skeleton.family, layers, dense, plan.unexpected_keys)


def _layer_source(
    module: ExpertsModule, groups: Mapping[str, ConversionGroup], skeleton: Skeleton, tracer: RowTracer
) -> LayerSource:
    traced = {}
    for name in sorted(module.parameters):
        for _, entry in groups[name].sources:
            if entry.dtype != "BF16":
                raise UnsupportedModel(
                    f"routed tensor {entry.name!r} has dtype {entry.dtype}, only BF16 is packed",
                    next_step="convert the checkpoint to bfloat16 first, with transformers' save_pretrained",
                )
        traced[name] = tracer.trace_matrices(groups[name], skeleton.state[name].shape)
    experts = tuple(
        tuple(TensorSource(matrix.spec, traced[matrix.parameter][matrix.index or 0]) for matrix in expert)
        for expert in module.experts
    )
    return LayerSource(module.path, experts)
