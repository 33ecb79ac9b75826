"""Contracts of a forward pass: `StepExperts` is told of it before it begins, `StepModel` computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from zipmoe.model.passes.prompt_pass import PromptResult
from zipmoe.residency.pools import Phase
from zipmoe.services.router.deadlines import Deadlines
from zipmoe.services.router.experts.read_account import ExpertUsage
from zipmoe.serving.planner import TicketWork
from zipmoe.serving.ticket import PageReuse, Ticket


class StepExperts(Protocol):
    """The engine's view of the expert provider."""

    @property
    def usage(self) -> ExpertUsage:
        """Running totals of hits, misses, bytes read and stalls; the stepper reads them around each pass."""
        ...

    def step(self, phase: Phase, tokens: int, deadlines: Deadlines) -> None:
        """Notes that a forward pass of `tokens` rows begins, whose layers wait for experts until the first deadline."""


class StepModel(Protocol):
    """Computes the passes that the planner has planned.

    A failed pass leaves all earlier results valid, and its requests may be tried again, alone or some of them together.
    A request is over when a pass of that request alone has failed.
    """

    @property
    def page_count(self) -> int:
        """Pages of the KV cache."""
        ...

    @property
    def page_reuse(self) -> PageReuse:
        """The pages of other requests that have the bits of a prompt's beginning."""
        ...

    @property
    def adopts_any(self) -> bool:
        """Whether requests adopt pages whatever their bits."""
        ...

    @property
    def shares_pages(self) -> bool:
        """Whether requests with the same beginning may read the same pages."""
        ...

    @property
    def most_together(self) -> int:
        """Largest number of answers that can share a pass."""
        ...

    def rows(self, works: Sequence[TicketWork]) -> list[list[torch.Tensor]]:
        """Computes rows of answers.

        Returns:
            The logits of each request, bf16, shape (vocabulary,): none if the next token cannot be chosen yet, else
            after its last token and after each drafted token.

        Raises:
            ZipMoeError: the provider's error.
        """
        ...

    @property
    def pages_to_prepare(self) -> int:
        """Free pages that `prepare` wants now; 0 if there is nothing to prepare."""
        ...

    def prepare(self, pages: Sequence[int]) -> None:
        """Prepares passes of a kind that has become frequent, with pages that nobody uses meanwhile."""
        ...

    def advance_prompts(self, works: Sequence[TicketWork], scored: Sequence[int | None]) -> list[bool]:
        """Computes a part of some prompts.

        Args:
            works: the planned rows, one entry per prompt.
            scored: for each prompt, likeliest tokens to report beside each token's log-probability; None scores
                nothing.

        Returns:
            For each prompt, whether all its keys and values are in the cache. If not, a later step has to call again.

        Raises:
            ZipMoeError: the provider's error; the prompts have to begin anew.
        """
        ...

    def finish_prompt(self, ticket: Ticket) -> PromptResult:
        """Returns the result of a completed prompt: logits for the first token, log-probabilities if scored."""
        ...

    def prompt_share(self, ticket: Ticket) -> float:
        """Returns the share of a prompt's layers that are computed, in [0, 1]; 0 where no prompt is under way."""
        ...

    def fork(self, ticket: Ticket, sibling: Ticket) -> None:
        """Gives a sibling the state of a request with a computed prompt, after the planner has forked the tickets."""
        ...

    def forget(self, ticket: Ticket) -> None:
        """Drops the state of a request outside the pages. Harmless when there is none."""
        ...
