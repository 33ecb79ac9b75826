"""Says how a quantised checkpoint becomes one in bfloat16, where transformers can write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from zipmoe.model.stock.model_types import auto_class_of


class _Dequantiser(NamedTuple):
    """A configuration class of transformers that loads dequantised weights, and the package that it needs."""

    config: str
    needs: str


_DEQUANTISERS: Mapping[str, _Dequantiser] = {
    "fp8": _Dequantiser("FineGrainedFP8Config", "accelerate"),
    "mxfp4": _Dequantiser("Mxfp4Config", ""),
}
"""By quant_method. Models are trained in these formats, so there may be no other checkpoint of them."""


def dequantising_step(model_type: str, method: Any) -> str:
    """Returns the next step for a quantised checkpoint.

    Args:
        model_type: model type of transformers.
        method: `quant_method` of the checkpoint, of any type.
    """
    dequantiser = _DEQUANTISERS.get(method) if isinstance(method, str) else None
    auto_class = auto_class_of(model_type)
    if dequantiser is None or auto_class is None:
        return "pack the checkpoint in bfloat16, float16 or float32 that this one was quantised from"
    # Without save_original_format=False, transformers would write the packed format's names, or fail.
    code = (
        f"from transformers import {auto_class} as Model, {dequantiser.config} as Quantised; "
        "Model.from_pretrained('SRC', dtype='bfloat16', quantization_config=Quantised(dequantize=True))"
        ".save_pretrained('BF16', save_original_format=False)"
    )
    install = f"`pip install {dequantiser.needs}`, " if dequantiser.needs else ""
    return (
        f'write it in bfloat16 first: {install}`python -c "{code}"`, copy the tokenizer files of SRC to BF16, pack BF16'
    )
