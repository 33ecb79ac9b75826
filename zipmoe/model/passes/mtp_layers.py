"""Drafts tokens by the checkpoint's layers for multi-token prediction (MTP), over the KV pages of the requests.

The first MTP layer computes a row from the hidden state of the model after a token, and from the token that follows.
Its head is that of the model, and gives the token after that. Each further layer takes the output of the layer before
and one more token. A model with a single layer applies that layer to its own output. The keys and values of a row stand
in the same token slot as those of the model's row, in blocks of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from zipmoe.model.attention.kv_pool import KvPlace, KvPool
from zipmoe.model.attention.ragged_attention import RaggedPass, RowSpan, ragged_attention
from zipmoe.model.attention.row_attention import RowAttention
from zipmoe.model.linear.native_linear import Linears, SharedRows
from zipmoe.model.stock.mtp import compute_mtp_layer, mtp_layer_count, mtp_logits
from zipmoe.serving.pages import PAGE_TOKENS

MOST_REPEATED = 15
"""Most drafts by a single layer: as many as a step verifies."""

ROWS_APART = 16
"""Most rows of a request that attend as rows of answers do, by kernels. More rows attend together, as a prompt."""


class MtpRows(NamedTuple):
    """Computed rows of a request, to be taken through the MTP layers.

    Attributes:
        begin: position of the first row. The rows before have gone through the layers.
        hidden_states: output of the model's body for each row, bf16, shape (rows, hidden).
        token_ids: the token that follows each row.
        pages: page table of the request.
    """

    begin: int
    hidden_states: torch.Tensor
    token_ids: Sequence[int]
    pages: Sequence[int]


@dataclass
class _Course:
    """A request on its way through the layers.

    Attributes:
        begin: position of the first row.
        hidden: output of the layer before.
        tokens: the next token for each row.
        pages: page table of the request.
        drafts: the drafts so far.
    """

    begin: int
    hidden: torch.Tensor
    tokens: list[int]
    pages: Sequence[int]
    drafts: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Position behind the last row."""
        return self.begin + len(self.tokens)

    @property
    def has_room(self) -> bool:
        """Whether the pages have a slot for one more row."""
        return self.end < len(self.pages) * PAGE_TOKENS


class MtpLayers:
    """Computes MTP layers. A draft is a guess, so its bits may depend on the other rows. Thread: one at a time."""

    def __init__(
        self,
        mtp: PreTrainedModel,
        pool: KvPool,
        cache: type[RaggedPass],
        linears: Linears | None,
        row_attention: RowAttention | None,
    ) -> None:
        """Takes the layers, whose attention has the last blocks of the pool.

        Args:
            mtp: stock's MTP layers with the modules of their model.
            pool: memory of keys and values.
            cache: the kind of pass that the form of the pool needs.
            linears: the linears of the model; None on a GPU.
            row_attention: kernels for single rows; None for stock's code.
        """
        self.layer_count = mtp_layer_count(mtp.config)
        self.most_drafts = MOST_REPEATED if self.layer_count == 1 else self.layer_count
        """Most tokens that `draft` drafts."""
        self._mtp = mtp
        self._pool = pool
        self._cache = cache
        self._linears = linears
        self._row_attention = row_attention

    def draft(self, requests: Sequence[MtpRows], count: int) -> list[tuple[int, ...]]:
        """Takes rows of requests through the layers, and drafts the tokens that follow the last token of each request.

        Args:
            requests: rows of different requests; the last token of each is the newest one.
            count: tokens to draft, at least 1; at most `most_drafts` are.

        Returns:
            The drafts of each request; fewer where the pages of the request end.

        Raises:
            ZipMoeError: error of the provider. The rows may be taken through the layers again.
        """
        courses = [_Course(each.begin, each.hidden_states, [*each.token_ids], each.pages) for each in requests]
        going = courses
        with torch.inference_mode(), ragged_attention(self._mtp):
            for depth in range(min(count, self.most_drafts)):
                if going:
                    self._advance(going, depth)
                    going = [each for each in going if depth + 1 < self.layer_count or each.has_room]
                    self._prepare(going, depth + 1)
        return [tuple(each.drafts) for each in courses]

    def _advance(self, courses: Sequence[_Course], depth: int) -> None:
        """Computes the next layer for all rows, and the draft after the last row of each course."""
        sizes = [len(each.tokens) for each in courses]
        spans = [span for each in courses for span in self._spans(each)]
        alone = self._linears is None or sum(sizes) == 1 or len(spans) < sum(sizes)
        shared = SharedRows(tuple(span.tokens for span in spans) if self._pool.layout.latent else ())
        with nullcontext() if alone or self._linears is None else self._linears.shared_by(shared):
            hidden = self._layer(courses, spans, min(depth, self.layer_count - 1))
            for course, rows in zip(courses, torch.split(hidden, sizes), strict=True):
                course.hidden = rows
            logits = mtp_logits(self._mtp, torch.stack([each.hidden[-1] for each in courses])[None])[0]
        for course, draft in zip(courses, logits.argmax(-1).tolist(), strict=True):
            course.drafts.append(draft)

    def _layer(self, courses: Sequence[_Course], spans: Sequence[RowSpan], layer: int) -> torch.Tensor:
        device = self._pool.device
        places = [(each.pages, position) for each in courses for position in range(each.begin, each.end)]
        slots = torch.tensor([self._pool.slot(*place) for place in places], device=device)
        cache = self._cache(self._pool, spans, slots, self._row_attention)
        return compute_mtp_layer(
            self._mtp,
            layer,
            torch.tensor([[token for each in courses for token in each.tokens]], device=device),
            torch.tensor([[position + 1 + layer for _, position in places]], device=device),
            torch.cat([each.hidden for each in courses])[None],
            cache,
            ragged=cache,
        )[0]

    def _spans(self, course: _Course) -> list[RowSpan]:
        rows = len(course.tokens)
        ends = [course.end] if rows > ROWS_APART else range(course.begin + 1, course.end + 1)
        bounds = pairwise([course.begin, *ends])
        return [RowSpan(end - begin, KvPlace(course.pages, end, self._pool.device), end) for begin, end in bounds]

    def _prepare(self, courses: Sequence[_Course], depth: int) -> None:
        """Sets the tokens of the next layer: one further for each row, or the draft as the only row of a repetition."""
        for each in courses:
            if depth < self.layer_count:
                each.tokens = [*each.tokens[1:], each.drafts[-1]]
            else:
                each.begin, each.hidden, each.tokens = each.end, each.hidden[-1:], [each.drafts[-1]]
