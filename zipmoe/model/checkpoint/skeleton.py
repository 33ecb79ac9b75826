"""Builds the model without weights on the meta device, as the source of names, shapes, dtypes and ties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from zipmoe.errors import UnsupportedModel, ZipMoeError
from zipmoe.model.checkpoint.checkpoint import Checkpoint
from zipmoe.model.checkpoint.model_type import model_type_of
from zipmoe.model.stock.conversion_tables import ConversionEntries
from zipmoe.model.stock.dtype_plan import DtypePlan
from zipmoe.model.stock.model_class import construct
from zipmoe.model.stock.mtp import construct_mtp, mtp_conversions
from zipmoe.system_error import first_line, install_step

MAX_EXPERTS = 1 << 16
"""Most experts of a layer that are served."""

COMPARE_CONFIG = "compare config.json with the one on the model's hub page"
"""Next step where a number or name of config.json fits neither transformers nor the weights."""

_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "num_decoder_layers")


@dataclass(frozen=True)
class Skeleton:
    """A bf16 model on the meta device.

    Attributes:
        family: transformers' `model_type` of the checkpoint.
        model: the text model.
        towers: the parts of a multimodal model that are left out, each with the names of its tensors.
        conversions: the renamings and conversions of its checkpoint; None for those of the model's class.
    """

    family: str
    model: PreTrainedModel
    towers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    conversions: ConversionEntries | None = None

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The state dict: all parameters and persistent buffers by name, on the meta device, in module order."""
        return dict(self.model.state_dict())

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of `state` and of the tensors of the towers."""
        return frozenset(self.state).union(*self.towers.values())

    @cached_property
    def _dtype_plan(self) -> DtypePlan:
        return DtypePlan(self.model)

    def dtype_of(self, name: str) -> torch.dtype:
        """Finds the dtype that `from_pretrained(dtype=torch.bfloat16)` gives to a parameter or buffer.

        Args:
            name: a key of `state`.
        """
        return self.dtype_of_name(name, self.state[name])

    def dtype_of_name(self, name: str, tensor: torch.Tensor) -> torch.dtype:
        """Finds the dtype that a tensor gets under a name, which `state` may lack."""
        return self._dtype_plan.dtype_of(name) or tensor.dtype


def build_skeleton(checkpoint: Checkpoint) -> Skeleton:
    """Builds the model of a checkpoint on the meta device. Code of the checkpoint never runs.

    Raises:
        CorruptData: config.json names no model type.
        UnsupportedModel: the checkpoint is quantised, transformers does not know the model type or refuses the
            configuration, or no class generates text from it.

    Cost: no weights; under a second, two seconds for a model of 10 000 modules.
    """
    family = model_type_of(checkpoint.config)
    _check_sizes(checkpoint)
    return skeleton_of(family, read_config(checkpoint.path), str(checkpoint.path))


def read_config(path: Path) -> PreTrainedConfig:
    """Reads the configuration of a checkpoint or store; `skeleton_of` says which errors transformers may raise.

    Raises:
        UnsupportedModel: transformers refuses config.json.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        return config
    except Exception as error:  # a hostile configuration can make transformers raise any exception: translated here
        raise _refused(str(path), error) from error


def skeleton_of(family: str, config: PreTrainedConfig, source: str) -> Skeleton:
    """Builds the skeleton of a configuration.

    Args:
        family: transformers' `model_type`.
        config: the configuration.
        source: origin of the configuration, for errors.

    Raises:
        UnsupportedModel: transformers refuses the configuration, or no class generates text from it.
    """
    try:
        built = construct(config)
    except ZipMoeError:
        raise
    except Exception as error:  # as above
        raise _refused(source, error) from error
    return Skeleton(family, built.model, built.towers)


def mtp_skeleton(skeleton: Skeleton) -> Skeleton:
    """Builds the skeleton of the MTP layers of a model that states some, without the modules that they share with it.

    Raises:
        UnsupportedModel: transformers constructs none for this configuration.
    """
    mtp = construct_mtp(skeleton.model)
    return Skeleton(skeleton.family, mtp, conversions=mtp_conversions(mtp, skeleton.model))


def _refused(source: str, error: Exception) -> UnsupportedModel:
    return UnsupportedModel(
        f"transformers refuses the configuration of {source}: {first_line(error)}",
        next_step=install_step(error) or COMPARE_CONFIG,
    )


def _check_sizes(checkpoint: Checkpoint) -> None:
    """Refuses numbers of modules that the checkpoint cannot fill, before transformers builds the modules."""
    tensor_count = len(checkpoint.tensors)
    text = checkpoint.config.get("text_config")
    for config in (checkpoint.config, text if isinstance(text, dict) else {}):
        # An encoder-decoder has a module for each expert. A decoder has one module for all experts of a layer.
        most_experts = tensor_count if config.get("is_encoder_decoder") else MAX_EXPERTS
        for name, most in (*((name, tensor_count) for name in _LAYER_COUNTS), ("num_experts", most_experts)):
            value = config.get(name)
            if isinstance(value, int) and value > most:
                limit = f"at most {most} experts of a layer are served"
                if most == tensor_count:
                    limit = f"but the checkpoint only {tensor_count} tensors"
                raise UnsupportedModel(f"config.json has {name} {value}, {limit}", next_step=COMPARE_CONFIG)
