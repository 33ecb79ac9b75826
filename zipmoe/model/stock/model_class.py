"""Chooses the class of transformers that computes the text of a checkpoint, and constructs it without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.utils.generic import ContextManagers

from zipmoe.errors import UnsupportedModel
from zipmoe.model.stock.towers import leave_out_towers

DTYPE = torch.bfloat16
"""The dtype that the model computes in."""

_ENCODER_DECODERS = (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,)
_DECODERS = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING)
_ORIGIN = ("_name_or_path", "architectures", "dtype", "model_type", "quantization_config", "transformers_version")


def generating_classes(config: PreTrainedConfig) -> list[type[PreTrainedModel]]:
    """Lists the classes that generate text from a configuration, in the order in which users load them.

    Raises:
        UnsupportedModel: there is none.
    """
    classes = []
    for mapping in _ENCODER_DECODERS if config.is_encoder_decoder else _DECODERS:
        found: Any = mapping.get(type(config), ())
        model_class = next(iter(found), None) if isinstance(found, tuple | list) else found
        if model_class is not None and issubclass(model_class, GenerationMixin):
            classes.append(model_class)
    if not classes:
        raise UnsupportedModel(f"transformers has no class that generates text for model type {config.model_type!r}")
    return classes


def text_model_class(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """Finds the class that generates text from a configuration, and the configuration that the class takes.

    A multimodal configuration may belong to a class of its own, or to the class of its text model. The latter takes
    the text part of the configuration, as `from_pretrained` of the same auto class does.

    Raises:
        UnsupportedModel: no class of transformers generates text from this configuration by a forward pass.
    """
    model_class = generating_classes(config)[0]
    if model_class.forward is nn.Module.forward:
        raise UnsupportedModel(
            f"{model_class.__name__} has no forward pass of its own: several models generate text and speech",
            next_step=_writing_step(config),
        )
    text_class = config.sub_configs.get("text_config")
    if text_class is not None and model_class.config_class is text_class:
        return model_class, config.get_text_config(decoder=True)
    return model_class, config


def _writing_step(config: PreTrainedConfig) -> str | None:
    """Returns how the part of a checkpoint that generates the text becomes a checkpoint; None if no part does."""
    for part in list(_parts(config))[1:]:
        with suppress(UnsupportedModel):
            part_class = generating_classes(part)[0]
            if part_class.forward is not nn.Module.forward:
                code = (
                    f"from transformers import {part_class.__name__} as Model; "
                    "Model.from_pretrained('SRC', dtype='bfloat16').save_pretrained('TEXT')"
                )
                return (
                    f'write the part that generates the text: `python -c "{code}"`, copy the tokenizer files of SRC to '
                    "TEXT, pack TEXT"
                )
    return None


def whole_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Finds the class of a configuration with all its parts, which is the class of the checkpoint on the hub.

    Raises:
        UnsupportedModel: no class of transformers generates text from this configuration.
    """
    classes = generating_classes(config)
    return next((found for found in classes if found.config_class is type(config)), classes[0])


def constructor_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Returns the fields from which a configuration is constructed again, without those that say where it is from."""
    return {name: value for name, value in config.to_dict().items() if name not in _ORIGIN}


def computes_eagerly(config: PreTrainedConfig) -> PreTrainedConfig:
    """Sets eager attention, eager experts and bfloat16 in a configuration and in each of its parts; returns it."""
    for part in _parts(config):
        part._attn_implementation = "eager"
        part._experts_implementation = "eager"
        part.dtype = DTYPE
    return config


@dataclass(frozen=True)
class Constructed:
    """A text model on the meta device.

    Attributes:
        model: the model, without weights, without initialisation and without towers.
        towers: the paths of the towers of a multimodal model, each with the names of its tensors in stock's state dict.
    """

    model: PreTrainedModel
    towers: Mapping[str, tuple[str, ...]]


def construct(config: PreTrainedConfig) -> Constructed:
    """Constructs the text model of a configuration on the meta device, in the contexts that `from_pretrained` uses.

    Args:
        config: any configuration that `AutoConfig` gives; changed by `computes_eagerly`.

    Raises:
        UnsupportedModel: no class of transformers generates text from this configuration.
        Exception: any exception of transformers on a configuration that it refuses.
    """
    model_class, config = text_model_class(computes_eagerly(config))
    contexts = model_class.get_init_context(DTYPE, False, False, None)
    with ContextManagers([*contexts, no_init_weights()]):
        model = model_class(config)
    return Constructed(model, leave_out_towers(model))


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part)
