"""Makes tiny configurations that behave as real ones do, and hub checkpoints of them with random weights."""

from __future__ import annotations

import re
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from zipmoe.model.families.exceptions import DEFAULTS, EXCEPTIONS
from zipmoe.model.families.layers import Fields
from zipmoe.model.families.random_weights import random_model
from zipmoe.model.families.sizes import VOCABULARY, tiny_fields
from zipmoe.model.stock.model_class import constructor_fields, whole_class

_ID = re.compile(r".*(_token_id|_token_index|_id)")
_ORDER = ("bos_token_id", "eos_token_id", "pad_token_id")


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """Makes a tiny twin of a configuration: other sizes and fewer layers, every other switch and every kind of layer.

    Args:
        config: the configuration of a real model, or the default one of a type.

    Raises:
        Exception: any exception of transformers on sizes that do not fit each other.
    """
    fields = constructor_fields(config)
    parts = {
        name: shrink(part)
        for name in config.sub_configs
        if isinstance(part := getattr(config, name, None), PreTrainedConfig)
    }
    tiny = tiny_fields({name: value for name, value in fields.items() if name not in parts})
    tiny.update(parts)
    _fit_ids(tiny)
    if change := EXCEPTIONS.get(config.model_type):
        change(tiny, fields)
    return type(config)(**tiny)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Returns the twin of the default configuration of a model type.

    Args:
        model_type: a model type of `moe_model_types`.
    """
    return shrink(AutoConfig.for_model(model_type, **DEFAULTS.get(model_type, {})))


def write_checkpoint(config: PreTrainedConfig, dst: Path, seed: int) -> None:
    """Writes a checkpoint in the hub's format with random weights, towers included. Equal arguments give equal weights.

    Args:
        config: a tiny configuration.
        dst: an existing directory.
        seed: seed of the weights, at least 0.

    Raises:
        UnsupportedModel: no class of transformers generates text from this configuration.
        Exception: any exception of transformers on a configuration that it refuses.
    """
    random_model(whole_class(config), config, seed).save_pretrained(dst)


def _fit_ids(tiny: Fields) -> None:
    """Moves the ids of special tokens into the vocabulary."""
    free = iter(range(VOCABULARY - 13, 0, -1))
    for name, value in tiny.items():
        if name in _ORDER:
            place = _ORDER.index(name)
            if value is not None:
                tiny[name] = [place] if isinstance(value, list) else place
        elif _ID.fullmatch(name) and isinstance(value, int) and value > len(_ORDER):
            tiny[name] = next(free)
