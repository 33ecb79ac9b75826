"""Finds the module of a decoder-only model that holds the layers, also inside a multimodal model, and its output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from greenlet import getcurrent
from torch import nn
from transformers import PreTrainedModel

from zipmoe.errors import UnsupportedModel


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the module with the embeddings, the layers and the last norm, without the head."""
    decoder: PreTrainedModel = model.get_decoder()  # type: ignore[no-untyped-call]
    body = decoder.base_model
    assert isinstance(body, PreTrainedModel)
    return body


def text_body(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the same module for code that replaces its layers; its `layers` is a ModuleList.

    Raises:
        UnsupportedModel: the layers are not where transformers' decoders have them.
    """
    body = text_model(model)
    if not isinstance(getattr(body, "layers", None), nn.ModuleList):
        raise UnsupportedModel(f"{type(body).__name__} has no list of layers")
    return body


@contextmanager
def in_place_of_layers(body: PreTrainedModel, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Puts modules in the place of the layers of a `text_body`, inside the context."""
    layers = body.layers
    body.layers = nn.ModuleList(modules)
    try:
        yield
    finally:
        body.layers = layers


@contextmanager
def hidden_states_of(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Collects the hidden states that the model's body returns, a tensor (1, tokens, hidden) per forward pass.

    Passes of other coroutines that are computed meanwhile are left out.
    """
    collected: list[torch.Tensor] = []
    ours = getcurrent()

    def collect(_: nn.Module, __: Any, output: Any) -> None:
        if getcurrent() is ours:
            collected.append(output.last_hidden_state)

    hook = text_model(model).register_forward_hook(collect)
    try:
        yield collected
    finally:
        hook.remove()
