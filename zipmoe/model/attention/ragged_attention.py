"""Attends for requests that share a pass: for each request over its own pages, by stock's own eager code."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from zipmoe.kernels.attention import Contexts
from zipmoe.model.attention.kv_pool import KvPlace, KvPool
from zipmoe.model.attention.row_attention import RowAttention
from zipmoe.model.stock.attention_switch import attending_by, eager_attention
from zipmoe.planning.workspace import heads_together

NAME = "zipmoe_ragged"


class RowSpan:
    """The rows of one request in a pass: the last tokens of a context with keys and values in the pool."""

    def __init__(self, rows: int, place: KvPlace, tokens: int) -> None:
        """Describes `rows` rows at the end of a context of `tokens` tokens."""
        self.rows = rows
        self.place = place
        self.tokens = tokens
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def lay_out(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the queries in stock's layout: a single row is contiguous. On a strided row torch is much slower."""
        return rows.contiguous() if self.rows == 1 else rows

    def first_visible(self, window: int | None) -> int:
        """Position of the first token that is read. For a single row, stock's sliding-window cache begins there, too.

        The rows of a prompt read the whole context, as in a prompt that is computed at once.
        """
        return 0 if window is None or self.rows > 1 else max(0, self.tokens - window)

    def mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """Returns the addend of the scores: 0, or the least number of the dtype; None for a single row."""
        if self.rows == 1:
            return None
        if window not in self._masks:
            first = self.first_visible(window)
            keys = torch.arange(first, self.tokens, device=like.device)[None]
            queries = torch.arange(self.tokens - self.rows, self.tokens, device=like.device)[:, None]
            seen = keys <= queries
            if window is not None:
                seen &= keys > queries - window
            zero = torch.zeros((), dtype=like.dtype, device=like.device)
            self._masks[window] = torch.where(seen, zero, torch.finfo(like.dtype).min)[None, None]
        return self._masks[window]


class SharedPass(Protocol):
    """Interface of a pass that computes the attention of all its requests; `attend` hands calls to such a pass."""

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Joins the outputs of stock's attention for each request alone; shape (batch, rows, heads, numbers)."""
        ...


class RaggedPass:
    """The cache of one pass: stores the new keys and values of all requests and attends for each request.

    A pass takes the place of stock's `Cache`. The model also hands the pass down to the attention function, as the
    argument `ragged`.
    """

    def __init__(
        self, pool: KvPool, spans: Sequence[RowSpan], slots: torch.Tensor, row_attention: RowAttention | None = None
    ) -> None:
        """Makes the cache of one pass.

        Args:
            pool: memory of keys and values.
            spans: the rows of each request, in order.
            slots: token slot of the pool for each row's key and value, int64, shape (rows,).
            row_attention: kernels for a pass with a single row of each request; None for stock's code.
        """
        self.pool = pool
        self.spans = spans
        self.slots = slots
        self._row_attention = row_attention
        self._single_rows: dict[int | None, Contexts] = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns 0; stock uses the length only in a call without positions, and every call here has positions."""
        return 0

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the new tensors unchanged.

        A layer may still expand keys and values from them. So `attend` does the storing.
        """
        return keys, values

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Stores the new keys and values, then computes stock's eager attention of each request and joins the outputs.

        A pass of single rows is computed by the kernels where the kernels have stock's bits.
        """
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        self.pool.write(layer, self.slots, key, value)
        window = self.pool.layout.windows[layer]
        if self._row_attention is not None and len(self.spans) == query.shape[2]:
            blocks = self.pool.keys[layer], self.pool.values[layer]
            joined = self._row_attention(module, query, *blocks, self._contexts_of_rows(window), kwargs)
            if joined is not None:
                return joined
        return self.attend_by_stock(module, query, self._read(layer, query.shape[1]), **kwargs)

    def attend_by_stock(
        self,
        module: nn.Module,
        query: torch.Tensor,
        contexts: Sequence[tuple[torch.Tensor, torch.Tensor]],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Runs stock's eager attention for each request in turn and joins the output rows.

        Args:
            module: stock's attention module.
            query: shape (1, heads, rows, numbers).
            contexts: keys and values of each request's context.
            kwargs: further arguments of stock's function.
        """
        window = self.pool.layout.windows[int(module.layer_idx)]  # type: ignore[arg-type]
        queries = torch.split(query, [span.rows for span in self.spans], dim=2)
        outputs = [
            attend_by_heads(module, span.lay_out(rows), keys, values, span.mask(window, rows), **kwargs)
            for span, rows, (keys, values) in zip(self.spans, queries, contexts, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _read(self, layer: int, query_heads: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns the keys and values of each request's context, in the layout of stock's cache.

        A product with a view of the pool runs at half the speed of a product with a copy, or less. Where query heads
        share keys, stock's code makes the copy, so views are returned.
        """
        window = self.pool.layout.windows[layer]
        pairs = [
            (
                span.place.read(self.pool.keys[layer], span.first_visible(window)),
                span.place.read(self.pool.values[layer], span.first_visible(window)),
            )
            for span in self.spans
        ]
        if query_heads != self.pool.layout.heads:
            return pairs
        return [(keys.contiguous(), values.contiguous()) for keys, values in pairs]

    def _contexts_of_rows(self, window: int | None) -> Contexts:
        """Returns the token slots that each row sees, in a pass with a single row of each request."""
        if window not in self._single_rows:
            runs = [span.place.runs(span.first_visible(window)) for span in self.spans]
            self._single_rows[window] = Contexts(runs, self.pool.keys[0].shape[1])
        return self._single_rows[window]


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    ragged: SharedPass,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Hands a call of the model's attention to the pass in the argument `ragged`.

    Args:
        module: stock's attention module.
        query: shape (batch, heads, rows, numbers).
        key: keys that the pass's `update` returned, or keys expanded from its output.
        value: likewise.
        attention_mask: not used; each request gets its own mask.
        ragged: the pass.
        kwargs: further arguments of stock's function, such as scaling and sinks.
    """
    return ragged.attend(module, query, key, value, **kwargs), None


def attend_by_heads(
    module: nn.Module,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    **kwargs: Any,
) -> torch.Tensor:
    """Runs stock's eager attention for a few heads at a time where the scores of all heads would take too much memory.

    Heads do not depend on each other, so the bits are those of one call. Where heads have sinks, all heads attend in
    one call.

    Args:
        module: stock's attention module.
        query: shape (1, heads, rows, numbers).
        keys: shape (1, heads of keys, tokens, numbers).
        values: shape (1, heads of keys, tokens, numbers).
        mask: shape (1, 1, rows, tokens), or none.
        kwargs: further arguments of stock's function.

    Returns:
        Shape (1, rows, heads, numbers).
    """
    eager = eager_attention(module)
    heads, groups = query.shape[1], query.shape[1] // keys.shape[1]
    together = heads_together(heads, groups, query.shape[2], keys.shape[2])
    if together == heads or hasattr(module, "sinks"):
        whole: torch.Tensor = eager(module, query, keys, values, mask, **kwargs)[0]
        return whole
    shares = zip(
        torch.split(query, together, dim=1),
        torch.split(keys, together // groups, dim=1),
        torch.split(values, together // groups, dim=1),
        strict=True,
    )
    return torch.cat([eager(module, *share, mask, **kwargs)[0] for share in shares], dim=2)


AttentionInterface.register(NAME, attend)


def ragged_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Makes the model attend by `attend` instead of stock's eager code, inside the context."""
    return attending_by(model, NAME)
