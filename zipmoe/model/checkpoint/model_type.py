"""Reads the model type of a checkpoint, and refuses what transformers does not know and what is quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING
from transformers import __version__ as transformers_version

from zipmoe.errors import CorruptData, UnsupportedModel
from zipmoe.model.checkpoint.dequantising import dequantising_step


def model_type_of(config: Mapping[str, Any]) -> str:
    """Reads the model type from a checkpoint's configuration, and refuses models that cannot be served losslessly.

    Args:
        config: parsed content of config.json.

    Returns:
        A model type of the installed transformers.

    Raises:
        CorruptData: there is no model_type.
        UnsupportedModel: transformers does not know the model type, or the weights are quantised.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CorruptData(
            "config.json has no model_type, so it is not that of a model",
            next_step="name the directory of a model in the hub's format",
        )
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedModel(
            f"transformers {transformers_version} does not know model type {model_type[:64]!r}",
            next_step="upgrade zipmoe once it is built on a transformers that knows this type; code of a checkpoint "
            "never runs",
        )
    if quantisation := config.get("quantization_config"):
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        raise UnsupportedModel(
            f"the checkpoint is quantised ({method or 'quantization_config is set'}), only bfloat16 weights are packed",
            next_step=dequantising_step(model_type, method),
        )
    return model_type
