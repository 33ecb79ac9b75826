"""Computes decode steps of several answers of an encoder-decoder as a batch, so that each expert is fetched once.

The batch has one token of each sequence. An expert's capacity counts the tokens of one sequence, so no token is dropped
because of another sequence. Each sequence attends to its own cache, by stock's own eager code.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import EncoderDecoderCache

from zipmoe.errors import UnsupportedModel
from zipmoe.model.attention.ragged_attention import ragged_attention
from zipmoe.model.build.build import BuiltModel
from zipmoe.model.linear.native_linear import Linears, SharedRows
from zipmoe.model.passes.sequence import Sequence as ModelSequence
from zipmoe.model.stock.attention_switch import eager_attention
from zipmoe.model.stock.computed_body import computed_encoder

FAMILY = "switch_transformers"


class _Caches(EncoderDecoderCache):
    """Presents the caches of several sequences as stock's one cache; holds back new entries until the step succeeds."""

    is_sliding: Any = (False,)
    is_linear: Any = (False,)
    is_dummy: Any = (False,)

    def __init__(self, caches: Sequence[EncoderDecoderCache]) -> None:
        self._caches = caches
        self._grown: list[dict[int, tuple[torch.Tensor, torch.Tensor]]] = [{} for _ in caches]
        self._biases: list[torch.Tensor] = []
        layers = len(caches[0].self_attention_cache.layers)
        self.is_updated = dict.fromkeys(range(layers), True)
        nothing = SimpleNamespace(keys=torch.empty(len(caches), 1, 0, 0), values=torch.empty(len(caches), 1, 0, 0))
        self.cross_attention_cache: Any = SimpleNamespace(layers=[nothing] * layers)
        self.self_attention_cache: Any = self

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns 0: sequences differ in length, and each gets its own position bias."""
        return 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends one token's key and value to each sequence."""
        for index, cache in enumerate(self._caches):
            layer: Any = cache.self_attention_cache.layers[layer_idx]
            self._grown[index][layer_idx] = (
                torch.cat([layer.keys, key_states[index : index + 1]], dim=-2),
                torch.cat([layer.values, value_states[index : index + 1]], dim=-2),
            )
        return key_states, value_states

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Attends for each sequence in turn, over the answer or, in cross-attention, over the prompt."""
        owner: Any = module
        layer = int(owner.layer_idx)
        if owner.has_relative_attention_bias:
            lengths = [grown[layer][0].shape[-2] for grown in self._grown]
            self._biases = [owner.compute_bias(1, length, query.device, length - 1) for length in lengths]
        kwargs.pop("position_bias")
        outputs = []
        for index, cache in enumerate(self._caches):
            if owner.is_causal:
                keys, values = self._grown[index][layer]
                bias = self._biases[index]
            else:
                prompt: Any = cache.cross_attention_cache.layers[layer]
                keys, values = prompt.keys, prompt.values
                bias = keys.new_zeros(1, owner.n_heads, 1, keys.shape[-2])
            row = query[index : index + 1]
            outputs.append(eager_attention(module)(module, row, keys, values, None, position_bias=bias, **kwargs)[0])
        return torch.cat(outputs)

    def keep(self) -> None:
        """Moves the new entries into the caches of the sequences."""
        for cache, grown in zip(self._caches, self._grown, strict=True):
            for index, (keys, values) in grown.items():
                layer: Any = cache.self_attention_cache.layers[index]
                layer.keys, layer.values = keys, values


class SideBySide:
    """Computes a decode step of several sequences.

    Thread: one at a time per model.
    """

    def __init__(self, built: BuiltModel, linears: Linears | None) -> None:
        """Prepares a model that was built with `linears`.

        Raises:
            UnsupportedModel: another family, or linears that cannot tell sequences apart.
        """
        if built.config.model_type != FAMILY:
            raise UnsupportedModel(f"steps of {built.config.model_type} are not computed side by side")
        if linears is None and built.placement.device.type == "cpu":
            raise UnsupportedModel("torch's own linears cannot tell requests apart")
        self._built = built
        self._linears = linears

    def step(self, sequences: Sequence[ModelSequence], token_ids: Sequence[int]) -> list[torch.Tensor]:
        """Appends a token to each sequence; a batch that fails appends no token.

        Returns:
            Logits of the next token of each sequence, bf16, shape (vocabulary,).

        Raises:
            ZipMoeError: error of the provider.
        """
        model: Any = self._built.model
        device = self._built.placement.device
        if self._linears is None or len(sequences) == 1:
            return [sequence.step(token) for sequence, token in zip(sequences, token_ids, strict=True)]
        caches = _Caches([sequence.cache for sequence in sequences])
        hidden = torch.empty(len(sequences), 1, int(model.config.d_model), dtype=model.dtype, device=device)
        with torch.inference_mode(), ragged_attention(model.get_decoder()), self._linears.shared_by(SharedRows()):
            logits = model(
                decoder_input_ids=torch.tensor([[token] for token in token_ids], device=device),
                encoder_outputs=computed_encoder(hidden),
                past_key_values=caches,
                ragged=caches,
                use_cache=True,
                return_dict=True,
            ).logits
        caches.keep()
        for sequence in sequences:
            sequence.stepped()
        return list(logits[:, -1])
