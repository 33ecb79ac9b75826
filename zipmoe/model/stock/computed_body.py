"""Gives a model hidden states that are already computed, in the place of its body or of its encoder's output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoEModelOutput, MoeModelOutputWithPast


class _BodyOutput(MoeModelOutputWithPast):
    """The output of a body. A field that the output of a family has beside these is None, as of a body without it."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _ComputedBody(nn.Module):
    """Takes the place of a model's body and returns known hidden states."""

    def __init__(self, hidden_states: torch.Tensor) -> None:
        super().__init__()
        self._hidden_states = hidden_states

    def forward(self, **_: Any) -> _BodyOutput:
        return _BodyOutput(last_hidden_state=self._hidden_states)


@contextmanager
def computed_body(model: PreTrainedModel, hidden_states: torch.Tensor) -> Iterator[None]:
    """Makes a decoder-only model compute its head alone, on known hidden states, inside the context.

    Args:
        model: the model.
        hidden_states: output of its body, shape (1, tokens, hidden).
    """
    body = model.base_model
    setattr(model, model.base_model_prefix, _ComputedBody(hidden_states))
    try:
        yield
    finally:
        setattr(model, model.base_model_prefix, body)


def computed_encoder(hidden_states: torch.Tensor) -> MoEModelOutput:
    """Returns the argument `encoder_outputs` with which an encoder-decoder does not run its encoder.

    Args:
        hidden_states: output of the encoder, shape (batch, tokens, hidden).
    """
    return MoEModelOutput(last_hidden_state=hidden_states)
