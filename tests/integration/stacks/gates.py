"""Which experts the gates of stock transformers choose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


@contextmanager
def chosen_experts(model: PreTrainedModel) -> Iterator[list[list[tuple[int, ...]]]]:
    """Notes what the gates of a Qwen choose during the block.

    Returns:
        Yields a list for each MoE layer, of the distinct experts that each forward pass chose there, ascending.
    """
    gates = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    chosen: list[list[tuple[int, ...]]] = [[] for _ in gates]

    def note(layer: int, outputs: tuple[torch.Tensor, ...]) -> None:
        chosen[layer].append(tuple(outputs[-1].unique().tolist()))

    hooks = [
        gate.register_forward_hook(lambda module, inputs, outputs, layer=layer: note(layer, outputs))
        for layer, gate in enumerate(gates)
    ]
    yield chosen
    for hook in hooks:
        hook.remove()
