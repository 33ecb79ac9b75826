"""Drafts by the model's layers for multi-token prediction (MTP), from the hidden states of computed rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import structlog
import torch

from zipmoe.errors import ZipMoeError
from zipmoe.model.passes.mtp_layers import ROWS_APART, MtpLayers, MtpRows
from zipmoe.serving.drafts import Draft, Drafts
from zipmoe.serving.ticket import Ticket

MOST_PENDING_ROWS = 128
"""Most rows of a request that wait to be taken through the layers while other rows are computed."""

_LOG = structlog.get_logger(__name__)


@dataclass
class _Pending:
    """Rows of a request that have not gone through the layers: position of the first, and hidden states of all."""

    begin: int
    hidden_states: torch.Tensor

    @property
    def end(self) -> int:
        """Position behind the last row."""
        return self.begin + len(self.hidden_states)


class MtpDrafts:
    """A `Drafter` that takes all computed rows of its requests through the MTP layers.

    The rows of a request may wait for some passes, and are then taken through the layers together. A request gets no
    more drafts once rows of it had to be dropped.

    Thread: the model thread.
    """

    source = "mtp"
    first_rates: ClassVar = (0.8, 0.6, 0.5, 0.4)

    def __init__(self, layers: MtpLayers) -> None:
        """Makes a drafter without requests."""
        self._layers = layers
        self._pending: dict[Ticket, _Pending | None] = {}

    @property
    def most_drafts(self) -> int:
        """Most tokens of a draft."""
        return self._layers.most_drafts

    def computed(self, ticket: Ticket, begin: int, hidden_states: torch.Tensor) -> None:
        """Keeps the hidden states of rows.

        Args:
            ticket: the request.
            begin: position of the first row. Earlier rows from there on were computed with rejected drafts.
            hidden_states: output of the model's body, bf16, shape (rows, hidden).
        """
        if ticket not in self._pending:
            self._pending[ticket] = _Pending(begin, hidden_states)
        elif (pending := self._pending[ticket]) is not None:
            kept = pending.hidden_states[: max(0, begin - pending.begin)]
            whole = pending.begin <= begin <= pending.end and len(kept) <= MOST_PENDING_ROWS
            self._pending[ticket] = _Pending(pending.begin, torch.cat([kept, hidden_states])) if whole else None

    def follows(self, ticket: Ticket) -> bool:
        """Whether the hidden states of all computed rows of a request are there, or have gone through the layers."""
        pending = self._pending.get(ticket)
        return pending is not None and pending.begin < ticket.computed <= pending.end

    def draft(self, tickets: Sequence[Ticket], most: Sequence[int]) -> Drafts:
        """Takes the rows of requests through the layers and drafts; `Drafter.draft` has the arguments.

        Where the experts of a layer cannot be provided, the requests get no more drafts.
        """
        works = {ticket: self._rows(ticket) for ticket in tickets}
        together = [ticket for ticket in tickets if len(works[ticket].token_ids) <= ROWS_APART]
        prompts = [[ticket] for ticket in tickets if ticket not in together]
        drafts: dict[Ticket, tuple[int, ...]] = {}
        begin_s = time.perf_counter()
        try:
            for group in [*prompts, together]:
                if group:
                    found = self._layers.draft([works[ticket] for ticket in group], max(most))
                    drafts.update(zip(group, found, strict=True))
        except ZipMoeError as error:
            _LOG.warning("mtp_draft_failed", reason=error.message)
            self._pending.update(dict.fromkeys(tickets))
            return Drafts([Draft()] * len(tickets), None)
        for ticket, rows in works.items():
            self._drafted(ticket, rows)
        seconds = None if prompts else time.perf_counter() - begin_s
        return Drafts([Draft(drafts[ticket][:limit]) for ticket, limit in zip(tickets, most, strict=True)], seconds)

    def _rows(self, ticket: Ticket) -> MtpRows:
        pending = self._pending[ticket]
        assert pending is not None
        count = ticket.computed - pending.begin
        tokens = ticket.tokens[pending.begin + 1 : ticket.computed + 1]
        return MtpRows(pending.begin, pending.hidden_states[:count], tokens, ticket.pages)

    def _drafted(self, ticket: Ticket, rows: MtpRows) -> None:
        """Keeps the last rows for layers behind the first: they saw drafts in the place of the tokens to come."""
        again = min(self._layers.layer_count - 1, len(rows.token_ids))
        self._pending[ticket] = _Pending(
            ticket.computed - again, rows.hidden_states[len(rows.token_ids) - again :].clone()
        )

    def forget(self, ticket: Ticket) -> None:
        """Drops the state of a request. A repeated call has no effect."""
        self._pending.pop(ticket, None)
