"""Measures the cache of a model by a forward pass on the meta device, which takes no memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

from zipmoe.model.stock.caches import new_cache
from zipmoe.model.stock.experts_module import expert_children, stacked_matrices
from zipmoe.store.format.measured import MeasuredSizes
from zipmoe.system_error import first_line

LENGTHS = (32, 64)
"""Tokens of the two passes. A window that is larger counts as growth without end, which is more than it takes."""

_LOG = logging.getLogger(__name__)


def measure_sizes(model: PreTrainedModel) -> MeasuredSizes | None:
    """Measures the bytes of a request's cache and the experts of a token.

    Args:
        model: a decoder-only model on the meta device; unchanged afterwards.

    Returns:
        The sizes; None if the code of the model needs values of tensors, which do not exist on the meta device.

    Cost: two passes without arithmetic, a second for 10,000 modules.
    """
    chosen: list[int] = []
    try:
        with torch.inference_mode(), _without_experts(model, chosen):
            shorter, longer = (_cache_bytes(model, tokens) for tokens in LENGTHS)
    except Exception as error:  # data-dependent code raises whatever it does on a tensor without values
        _LOG.warning("the cache of %s cannot be measured: %s", type(model).__name__, first_line(error))
        return None
    token_bytes = max(0, -(-(longer - shorter) // (LENGTHS[1] - LENGTHS[0])))
    return MeasuredSizes(token_bytes, max(0, shorter - LENGTHS[0] * token_bytes), max(chosen, default=1))


@contextmanager
def _without_experts(model: PreTrainedModel, chosen: list[int]) -> Iterator[None]:
    """Replaces the routed experts by zeros of the shape of their output, and notes how many a token chooses."""
    replaced = []
    for module in model.modules():
        matrices = stacked_matrices(module)
        if not matrices and not expert_children(module):
            continue
        # A module of one matrix is a linear of the experts (jetmoe). All others give rows as wide as they take.
        width = matrices[0].rows if len(matrices) == 1 else None

        def zeros(rows: torch.Tensor, *args: Any, width: int | None = width, **kwargs: Any) -> torch.Tensor:
            ids = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
            chosen.extend(1 if each.dim() == 3 else each.shape[-1] for each in ids if not each.is_floating_point())
            return torch.zeros_like(rows) if width is None else rows.new_zeros(*rows.shape[:-1], width)

        module.forward = zeros
        replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def _cache_bytes(model: PreTrainedModel, tokens: int) -> int:
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    positions = torch.arange(tokens, device="meta")[None]
    cache = new_cache(model)
    for layer in getattr(cache, "layers", ()):
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.sliding_window = tokens + 1  # pages keep every token of such a layer
    with torch.device("meta"):
        output = model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, return_dict=True)
    return sum(prod(each.shape) * each.element_size() for each in _tensors(output.past_key_values, set()))


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Yields the tensors of a cache, each once; `seen` has the ids of objects that live as long as the cache."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each, seen)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()), seen)
    elif id(value) in seen:
        return
    elif isinstance(value, torch.Tensor):
        seen.add(id(value))
        if value.is_floating_point():  # the others are counters of a few bytes
            yield value
    elif type(value).__module__.startswith("transformers.") and not isinstance(value, nn.Module | PreTrainedConfig):
        seen.add(id(value))
        yield from _tensors(list(vars(value).values()), seen)
