"""The parts of a model that a pass of one row needs, and the eager pass with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from zipmoe.model.attention.kv_pool import KvPlace, KvPool
from zipmoe.model.attention.ragged_attention import RaggedPass, RowSpan, ragged_attention
from zipmoe.model.attention.row_attention import RowAttention
from zipmoe.model.build.build import BuiltModel
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.stock.body import hidden_states_of


@dataclass(frozen=True)
class RowModel:
    """A model with expanded keys and values in pages, on the CPU."""

    built: BuiltModel
    body: PreTrainedModel
    experts: tuple[RoutedExperts, ...]
    linears: Linears
    pool: KvPool
    attention: RowAttention

    @property
    def layer_count(self) -> int:
        """Layers of the model, without those for multi-token prediction."""
        layers: Any = self.body.layers
        return len(layers)

    def cache(self, position: int, pages: Sequence[int]) -> RaggedPass:
        """Makes the cache of a pass with one row at a position of a page table."""
        span = RowSpan(1, KvPlace(pages, position + 1, self.pool.device), position + 1)
        slots = torch.tensor([self.pool.slot(pages, position)])
        return RaggedPass(self.pool, [span], slots, self.attention)

    def eager(
        self, token_id: torch.Tensor, position: torch.Tensor, cache: RaggedPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs stock's modules for one row.

        Args:
            token_id: int64, shape (1, 1).
            position: likewise.
            cache: the row's pass.

        Returns:
            Logits, shape (vocabulary,), and the output of the model's body, shape (hidden,).
        """
        with ragged_attention(self.body), hidden_states_of(self.built.model) as bodies:
            logits: torch.Tensor = self.built.model(
                input_ids=token_id,
                position_ids=position,
                past_key_values=cache,
                ragged=cache,
                logits_to_keep=1,
                use_cache=True,
                return_dict=True,
            ).logits[0, 0]
        return logits, bodies[0][0, 0]
