"""Fills models by stock's own initialisation: all weights of a new model, or the buffers that are in no checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from zipmoe.model.stock.model_class import DTYPE, computes_eagerly


def initialised_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Constructs a model in memory, with weights that stock draws from torch's global generator.

    Args:
        model_class: stock's class of the model, towers included.
        config: its configuration; changed by `computes_eagerly`.

    Returns:
        The model, bfloat16 but for the parameters that stock's code makes in float32.
    """
    build: Callable[..., PreTrainedModel] = model_class._from_config
    return build(computes_eagerly(config), dtype=DTYPE)


def refill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Computes the buffers that are in no checkpoint, such as rotary frequencies, in fp32 as stock does.

    Stock's initialisation of a module that owns such a buffer also draws the weights of the module anew. A
    floating-point buffer that stock leaves unset is NaN afterwards.

    Args:
        model: a model on the meta device.
        device: device of the buffers.
    """
    names = [name for name, _ in model.named_non_persistent_buffers()]
    owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
    for name in names:
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        buffer = torch.empty_like(module.get_buffer(attribute), device=device)
        module.register_buffer(attribute, buffer.fill_(torch.nan) if buffer.is_floating_point() else buffer, False)
    fill: Callable[[nn.Module], None] = model._init_weights
    with torch.no_grad():
        for owner in owners:
            fill(model.get_submodule(owner))
