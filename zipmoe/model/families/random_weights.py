"""Fills a model with random weights that keep its activations alive and leave no parameter without effect."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from zipmoe.model.checkpoint.skeleton import Skeleton
from zipmoe.model.stock.experts_module import flags_of
from zipmoe.model.stock.initialisation import initialised_model

_NOISE = 0.1
_CONSTANT = 1e-4


def random_model(model_class: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Builds a model with random weights. Equal arguments give equal weights.

    A matrix has the standard deviation 1/sqrt(fan-in), so that the logits of a gate have about unit variance. A vector,
    and a matrix that stock fills with one value, keeps stock's value and gets noise of 0.1.

    Args:
        model_class: stock's class of the model.
        config: a configuration, small enough to build in memory.
        seed: seed of the weights, at least 0.

    Returns:
        The model in evaluation mode, bfloat16 but for the parameters that stock keeps in float32.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = initialised_model(model_class, config)
    generator = torch.Generator().manual_seed(seed)
    skeleton = Skeleton(str(config.model_type), model)
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in module.named_parameters(recurse=False):
            values = _values(name, module, parameter.detach().float(), generator)
            parameter.data = values.to(skeleton.dtype_of(f"{prefix}{name}"))
        for name, buffer in module.named_buffers(recurse=False):
            if f"{prefix}{name}" in skeleton.state:  # buffers that are in no checkpoint keep stock's values
                _fill_buffer(name, module, buffer, generator)
    model.tie_weights()
    nn.Module.eval(model)
    return model


def _values(name: str, module: nn.Module, stock: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(stock.shape, generator=generator)
    if stock.ndim < 2 or name == "A_log" or stock.std() < _CONSTANT:
        return stock + _NOISE * noise
    if isinstance(module, nn.Embedding) or stock.ndim == 2:
        fan_in = stock.shape[-1]
    elif stock.ndim == 3 and not isinstance(module, nn.Conv1d):
        fan_in = stock.shape[1 if flags_of(module).is_transposed else 2]
    else:
        fan_in = stock[0].numel()
    return noise / math.sqrt(fan_in)


def _fill_buffer(name: str, module: nn.Module, buffer: torch.Tensor, generator: torch.Generator) -> None:
    if name == "tid2eid":  # the experts of each token, by its id
        experts = int(module.num_experts)  # type: ignore[arg-type]
        order = torch.rand(len(buffer), experts, generator=generator).argsort(dim=1)
        buffer.copy_(order[:, : buffer.shape[1]])
    elif buffer.is_floating_point():
        buffer.add_(_NOISE * torch.randn(buffer.shape, generator=generator).to(buffer.dtype))
