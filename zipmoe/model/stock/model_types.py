"""Derives the Mixture-of-Experts model types of the installed transformers from transformers itself.

A model type has experts if the module of its model, or of the model of its text part, defines a class of experts. The
modules are read as text, so that 70 of them need not be imported.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from transformers import CONFIG_MAPPING
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

_EXPERTS = re.compile(r"^@use_experts_implementation|^class \w*Experts?\b", re.MULTILINE)
_TEXT_PARTS = ("text_config", "thinker_config")
_TYPES_OF_AUTO_CLASSES = {
    "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForImageTextToText": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "AutoModelForMultimodalLM": MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
}


def auto_class_of(model_type: str) -> str | None:
    """Returns the name of the auto class of transformers that generates text with a model type; None if none does."""
    return next((name for name, types in _TYPES_OF_AUTO_CLASSES.items() if model_type in types), None)


@cache
def moe_model_types() -> tuple[str, ...]:
    """Lists the model types with routed experts that a class of transformers generates text from, in ascending order.

    Cost: reads 500 files and imports 400 configurations, some seconds at the first call.
    """
    with_experts = _modules_with_experts()
    return tuple(
        sorted(
            model_type
            for model_type in CONFIG_MAPPING
            if auto_class_of(model_type) is not None
            and any(model_type_to_module_name(part) in with_experts for part in (model_type, *_text_parts(model_type)))
        )
    )


@cache
def _modules_with_experts() -> frozenset[str]:
    spec = importlib.util.find_spec("transformers.models")
    folders = spec.submodule_search_locations if spec is not None else None
    return frozenset(
        path.parent.name
        for folder in folders or ()
        for path in Path(folder).glob("*/modeling_*.py")
        if _EXPERTS.search(path.read_text(encoding="utf-8"))
    )


def _text_parts(model_type: str) -> list[str]:
    defaults = CONFIG_MAPPING[model_type].sub_configs_defaults
    return [defaults[name].model_type for name in _TEXT_PARTS if name in defaults]
