"""Lists the supported model families. Tests compare each family with stock transformers, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zipmoe.errors import CorruptData, UnsupportedModel

FAMILIES = (
    "qwen2_moe",
    "deepseek_v2",
    "switch_transformers",
    "qwen3_moe",
    "olmoe",
    "mixtral",
    "gpt_oss",
    "phimoe",
    "glm4_moe",
    "deepseek_v3",
    "granitemoe",
)
"""transformers' `model_type` of every supported family. The first three are the families of the paper."""


def family_of(config: Mapping[str, Any]) -> str:
    """Reads the family from a checkpoint's configuration, and refuses models that cannot be served losslessly.

    Args:
        config: parsed content of config.json.

    Returns:
        One of `FAMILIES`.

    Raises:
        CorruptData: there is no model_type.
        UnsupportedModel: another family, or quantised weights.
    """
    family = config.get("model_type")
    if not isinstance(family, str):
        raise CorruptData("config.json has no model_type", next_step="name a directory in the hub's format")
    if family not in FAMILIES:
        raise UnsupportedModel(
            f"model type {family[:64]!r} is not supported", next_step=f"supported are {', '.join(FAMILIES)}"
        )
    if quantisation := config.get("quantization_config"):
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        raise UnsupportedModel(
            f"the checkpoint is quantised ({method or 'quantization_config is set'}), only bfloat16 weights are packed",
            next_step="convert it to bfloat16 first: load it with transformers, dequantised, and call save_pretrained",
        )
    return family
