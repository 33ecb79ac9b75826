"""Computes a prompt's forward pass, which can stop between layers so that other requests get tokens meanwhile.

The rows are never divided. Every linear, gate and expert sees as many rows as in stock's single call. So the bits are
stock's in every family and on every machine, and each expert that a layer needs is read once for the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from zipmoe.errors import InternalError
from zipmoe.model.attention.ragged_attention import RaggedPass, ragged_attention
from zipmoe.model.passes.head import PromptScores, next_token_logprobs
from zipmoe.model.stock.body import hidden_states_of, in_place_of_layers, text_body


class _Noted(nn.Module):
    """Takes the place of a layer and records the arguments of the layer's call."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: torch.Tensor | None = None
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.hidden, self.arguments = hidden_states, kwargs
        return hidden_states


class _Computed(nn.Module):
    """Takes the place of the layers and returns known hidden states."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        return self._hidden


@dataclass(frozen=True)
class PromptResult:
    """Result of a prompt's pass.

    Attributes:
        logits: bf16, shape (vocabulary,): for the first token of the answer.
        scores: log-probabilities of all tokens but the first; None unless asked for.
        hidden_states: bf16, shape (tokens, hidden): output of the model's body, of a pass layer by layer.
    """

    logits: torch.Tensor
    scores: PromptScores | None
    hidden_states: torch.Tensor | None = None


class PromptPass:
    """Computes a prompt, or the rest of a prompt with a cached beginning, layer by layer.

    Thread: one at a time per model. After an error the pass is over.
    """

    def __init__(
        self, model: PreTrainedModel, token_ids: Sequence[int], begin: int, ragged: RaggedPass, *, scored: int | None
    ) -> None:
        """Prepares the pass; nothing is computed yet.

        Args:
            model: decoder-only.
            token_ids: tokens to compute.
            begin: position of the first token.
            ragged: the cache of the pass.
            scored: likeliest tokens to report beside each token's log-probability; None scores nothing.
        """
        self._model = model
        self._scored = scored
        self._body = text_body(model)
        self._layers: nn.ModuleList = self._body.layers  # type: ignore[assignment]
        self.begin = begin
        """Position of the first token."""
        device = ragged.pool.device
        end = begin + len(token_ids)
        self._inputs = {
            "input_ids": torch.tensor([list(token_ids)], device=device),
            "position_ids": torch.arange(begin, end, device=device)[None],
            "past_key_values": ragged,
            "ragged": ragged,
            "use_cache": True,
            "return_dict": True,
        }
        self._hidden: torch.Tensor | None = None
        self._arguments: list[dict[str, Any]] = []
        self._next = 0

    @property
    def layers_left(self) -> int:
        """Layers that are still to be computed."""
        return len(self._layers) - self._next

    def advance(self, layers: int) -> None:
        """Computes the next layers.

        Args:
            layers: number of layers, at least 1; fewer are computed if fewer are left.

        Raises:
            ZipMoeError: error of the provider.
        """
        with torch.inference_mode(), ragged_attention(self._body):
            self.compute(layers)

    def compute(self, layers: int) -> None:
        """Computes the next layers for a caller that has already begun inference mode and ragged attention."""
        if not self._arguments:
            self._begin()
        hidden, self._hidden = self._hidden, None
        if hidden is None:
            raise InternalError("this pass has failed")
        for index in range(self._next, min(self._next + layers, len(self._layers))):
            hidden = self._layers[index](hidden, **self._arguments[index])
            self._next = index + 1
        self._hidden = hidden

    def finish(self) -> PromptResult:
        """Computes the head after all layers are computed."""
        if self._hidden is None or self.layers_left:
            raise InternalError("layers of this pass are still to be computed")
        with torch.inference_mode(), ragged_attention(self._body):
            computed = [_Computed(self._hidden)]
            with in_place_of_layers(self._body, computed), hidden_states_of(self._model) as bodies:
                logits = self._model(**self._inputs, logits_to_keep=1).logits[0, -1]
            if self._scored is None:
                return PromptResult(logits, None, bodies[0][0])
            ids: Any = self._inputs["input_ids"]
            return PromptResult(logits, next_token_logprobs(self._model, bodies[0], ids, self._scored), bodies[0][0])

    def _begin(self) -> None:
        """Runs stock's own forward to record the input of the first layer and the other arguments of every layer."""
        noted = [_Noted() for _ in self._layers]
        with in_place_of_layers(self._body, noted):
            self._model.base_model(**self._inputs)
        self._hidden = noted[0].hidden
        self._arguments = [each.arguments for each in noted]
