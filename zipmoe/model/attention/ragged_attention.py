"""Attention of requests that share a pass: each over its own pages, by stock's own eager code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from zipmoe.errors import InternalError
from zipmoe.kernels.attention import Contexts
from zipmoe.model.attention.kv_pool import KvPlace, KvPool
from zipmoe.model.attention.row_attention import RowAttention
from zipmoe.planning.memory_split import heads_together

NAME = "zipmoe_ragged"


class RowSpan:
    """The rows of one request in a pass: they come last in a context whose keys and values are in the pool."""

    def __init__(self, rows: int, place: KvPlace, tokens: int) -> None:
        """Describes `rows` rows at the end of a context of `tokens` tokens."""
        self.rows = rows
        self.place = place
        self.tokens = tokens
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def lay_out(self, rows: torch.Tensor) -> torch.Tensor:
        """The queries in stock's layout: a single row is contiguous there, and torch is much slower where it is not."""
        return rows.contiguous() if self.rows == 1 else rows

    def first_visible(self, window: int | None) -> int:
        """The first token that any of the rows sees, as stock's cache of a window keeps it."""
        return 0 if window is None else max(0, self.tokens - self.rows - window + 1)

    def mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """What is added to the scores: 0, or the least number of the dtype; None if every row sees all."""
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
    """What attends for all requests of a pass."""

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """What stock's attention gives for each request alone, joined; shape (batch, rows, heads, numbers)."""
        ...


class RaggedPass:
    """The cache that one pass sees: it takes the new keys and values of all requests, and knows whose they are.

    It stands where stock has a `Cache`, and is handed down to the attention function beside it.
    """

    def __init__(
        self, pool: KvPool, spans: Sequence[RowSpan], slots: torch.Tensor, row_attention: RowAttention | None = None
    ) -> None:
        """Makes the cache of one pass.

        Args:
            pool: where keys and values are kept.
            spans: whose the rows are, in order.
            slots: where each row's key and value belong, int64, shape (rows,).
            row_attention: by which spans of one row attend; None if by stock's code.
        """
        self.pool = pool
        self.spans = spans
        self.slots = slots
        self._row_attention = row_attention
        self._single_rows: dict[int | None, Contexts] = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Stock asks when it has no positions, which it is always given here."""
        return 0

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives back what is new: `attend` stores it, as the layer may still make keys and values of it."""
        return keys, values

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """What stock's eager attention gives for one request after the other, joined; single rows by the kernels.

        Stores what is new first.
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
        """Runs stock's eager attention for one request after the other, and joins the rows again.

        Args:
            module: stock's attention module.
            query: shape (1, heads, rows, numbers).
            contexts: keys and values that each request attends to.
            kwargs: what stock's function takes besides.
        """
        window = self.pool.layout.windows[int(module.layer_idx)]  # type: ignore[arg-type]
        queries = torch.split(query, [span.rows for span in self.spans], dim=2)
        outputs = [
            attend_by_heads(module, span.lay_out(rows), keys, values, span.mask(window, rows), **kwargs)
            for span, rows, (keys, values) in zip(self.spans, queries, contexts, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _read(self, layer: int, query_heads: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What each request attends to, in the layout in which stock's cache has it.

        torch multiplies by a view of the pool at half the speed or less of a copy; where heads are shared, stock's code
        makes that copy itself.
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
        """Where the tokens are that each row sees, if every span has one row."""
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
    """Attends as the pass says that a model is called with, under the argument `ragged`.

    Args:
        module: stock's attention module.
        query: shape (batch, heads, rows, numbers).
        key: as the pass's `update` gave it, or expanded from that.
        value: the same.
        attention_mask: none; each request gets its own.
        ragged: the pass.
        kwargs: what stock's function takes besides, such as scaling and sinks.
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
    """Runs stock's eager attention for a few heads at a time, where the scores of all would take too much memory.

    Heads do not see each other, so the bits are those of one call. Where heads have sinks, all attend at once.

    Args:
        module: stock's attention module.
        query: shape (1, heads, rows, numbers).
        keys: shape (1, heads of keys, tokens, numbers).
        values: shape (1, heads of keys, tokens, numbers).
        mask: shape (1, 1, rows, tokens), or none.
        kwargs: what stock's function takes besides.

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


def eager_attention(module: nn.Module) -> Callable[..., tuple[torch.Tensor, Any]]:
    """Stock's own eager attention for a module."""
    function: Callable[..., tuple[torch.Tensor, Any]] = sys.modules[type(module).__module__].eager_attention_forward
    return function


AttentionInterface.register(NAME, attend)


@contextmanager
def ragged_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model attends by `attend` instead of stock's eager code alone."""
    config = model.config
    before = config._attn_implementation
    if before != "eager":
        raise InternalError(f"the model attends by {before}")
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
