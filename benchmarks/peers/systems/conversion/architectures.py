"""The tables, by transformers' model type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.peers.systems.conversion.architecture import Architecture
from benchmarks.peers.systems.conversion.gemma4 import GEMMA4
from benchmarks.peers.systems.conversion.glm4_moe_lite import GLM4_MOE_LITE
from benchmarks.peers.systems.conversion.qwen2_moe import QWEN2_MOE
from benchmarks.peers.systems.conversion.qwen3_5_moe import QWEN3_5_MOE
from zipmoe.errors import UnsupportedModel

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "qwen2_moe": QWEN2_MOE,
    "glm4_moe_lite": GLM4_MOE_LITE,
    "gemma4_text": GEMMA4,
    "qwen3_5_moe_text": QWEN3_5_MOE,
}
"""deepseek_v2 is not among them: llama.cpp takes deepseek2 without a low rank of queries at 26 or 27 layers alone."""


def architecture_of(model_type: str) -> Architecture:
    """Finds the table of a model type; raises UnsupportedModel where there is none."""
    if model_type not in ARCHITECTURES:
        raise UnsupportedModel(f"{model_type} is not converted to GGUF, only {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[model_type]
