"""The parts of a model that a pass of single rows needs, and the eager pass with them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from transformers import PreTrainedModel

from zipmoe.model.attention.kv_pool import KvPlace, KvPool
from zipmoe.model.attention.ragged_attention import RaggedPass, RowSpan, ragged_attention
from zipmoe.model.attention.row_attention import RowAttention
from zipmoe.model.build.build import BuiltModel
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.linear.native_linear import Linears, SharedRows
from zipmoe.model.stock.body import hidden_states_of


class PassRow(Protocol):
    """A row of a pass: a token, its position in its request, and the request's page table."""

    @property
    def token_id(self) -> int:
        """The token."""
        ...

    @property
    def position(self) -> int:
        """Position of the token."""
        ...

    @property
    def pages(self) -> Sequence[int]:
        """Page table, with room for the token."""
        ...


class ProofRow(NamedTuple):
    """A `PassRow` of a recording or of its proof."""

    token_id: int
    position: int
    pages: Sequence[int]


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

    def cache(self, rows: Sequence[PassRow]) -> RaggedPass:
        """Makes the cache of a pass."""
        places = [KvPlace(row.pages, row.position + 1, self.pool.device) for row in rows]
        spans = [RowSpan(1, place, row.position + 1) for row, place in zip(rows, places, strict=True)]
        slots = torch.tensor([self.pool.slot(row.pages, row.position) for row in rows])
        return RaggedPass(self.pool, spans, slots, self.attention)

    def rows_alone(self, count: int) -> AbstractContextManager[None]:
        """Makes linears give each of several rows the bits that it has alone, inside the `with` block."""
        return nullcontext() if count == 1 else self.linears.shared_by(SharedRows())

    def eager(
        self, token_ids: torch.Tensor, positions: torch.Tensor, cache: RaggedPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs stock's modules for some rows.

        Args:
            token_ids: int64, shape (1, rows).
            positions: likewise.
            cache: the rows' pass.

        Returns:
            Logits, shape (rows, vocabulary), and the output of the model's body, shape (rows, hidden).
        """
        rows = token_ids.shape[1]
        with ragged_attention(self.body), self.rows_alone(rows), hidden_states_of(self.built.model) as bodies:
            logits: torch.Tensor = self.built.model(
                input_ids=token_ids,
                position_ids=positions,
                past_key_values=cache,
                ragged=cache,
                logits_to_keep=rows,
                use_cache=True,
                return_dict=True,
            ).logits[0]
        return logits, bodies[0][0]
