"""Builds the model without weights on the meta device, as the source of names, shapes, dtypes and ties."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.checkpoint import Checkpoint
from zipmoe.model.checkpoint.families import family_of
from zipmoe.system_error import first_line

_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "num_decoder_layers")


@dataclass(frozen=True)
class Skeleton:
    """A bf16 model on the meta device."""

    family: str
    model: PreTrainedModel

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The state dict: all parameters and persistent buffers by name, on the meta device, in module order."""
        return dict(self.model.state_dict())

    @cached_property
    def _planned_dtypes(self) -> tuple[Any, dict[str, torch.dtype]]:
        plan = self.model._get_dtype_plan(torch.bfloat16)
        pattern, glob_of_group, _ = build_glob_alternation(list(plan))
        return (pattern if plan else None), {group: plan[glob] for group, glob in glob_of_group.items()}

    def dtype_of(self, name: str) -> torch.dtype:
        """Finds the dtype that `from_pretrained(dtype=torch.bfloat16)` gives to a parameter or buffer.

        Args:
            name: a key of `state`.
        """
        pattern, dtypes = self._planned_dtypes
        match = pattern.search(name) if pattern is not None else None
        if match is not None and match.lastgroup is not None:
            return dtypes[match.lastgroup]
        return self.state[name].dtype


def build_skeleton(checkpoint: Checkpoint) -> Skeleton:
    """Builds the model of a checkpoint on the meta device. Code of the checkpoint never runs.

    Raises:
        CorruptData: config.json names no model type.
        UnsupportedModel: the family is not supported, the checkpoint is quantised, or transformers refuses the
            configuration.

    Cost: no weights; under a second, two seconds for a model of 10 000 modules.
    """
    family = family_of(checkpoint.config)
    _check_sizes(family, checkpoint)
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False, local_files_only=True)
        return Skeleton(family, meta_model(config))
    except Exception as error:  # a hostile configuration can make transformers raise any exception: translated here
        raise UnsupportedModel(
            f"transformers refuses the configuration of {checkpoint.path}: {first_line(error)}",
            next_step="compare config.json with the one on the model's hub page",
        ) from error


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Builds the bf16 model of a configuration on the meta device: a causal language model or an encoder-decoder."""
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return cast(
            PreTrainedModel,
            auto_class.from_config(  # type: ignore[no-untyped-call]
                config, dtype=torch.bfloat16, trust_remote_code=False
            ),
        )


def _check_sizes(family: str, checkpoint: Checkpoint) -> None:
    """Refuses numbers of modules that the checkpoint cannot fill, before transformers builds the modules."""
    tensor_count = len(checkpoint.tensors)
    # Switch has a module for each expert. The other families have one module for all experts of a layer.
    names = (*_LAYER_COUNTS, "num_experts") if family == "switch_transformers" else _LAYER_COUNTS
    for name in names:
        value = checkpoint.config.get(name)
        if isinstance(value, int) and value > tensor_count:
            raise UnsupportedModel(f"config.json has {name} {value}, but the checkpoint only {tensor_count} tensors")
