"""How the engine gets a step computed: the contract, and who hears of it beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from zipmoe.model.passes.prompt_pass import PromptResult
from zipmoe.residency.pools import Phase
from zipmoe.serving.planner import TicketWork
from zipmoe.serving.ticket import Ticket


@runtime_checkable
class StepListener(Protocol):
    """Whoever supplies experts and wants to know what for."""

    def step(self, phase: Phase, tokens: int) -> None:
        """A forward pass of `tokens` rows begins."""


class NoListener:
    """Nobody wants to know."""

    def step(self, phase: Phase, tokens: int) -> None:
        """Does nothing."""


class StepModel(Protocol):
    """Computes what a planner has planned.

    A pass that fails has changed nothing that counts, and each request of it may be tried by itself; one that fails by
    itself is over.
    """

    @property
    def page_count(self) -> int:
        """Pages of its cache."""
        ...

    @property
    def reuses_pages(self) -> bool:
        """Whether what one request has computed can be taken over by another."""
        ...

    @property
    def most_together(self) -> int:
        """Requests whose rows can share a pass."""
        ...

    def rows(self, works: Sequence[TicketWork]) -> list[torch.Tensor | None]:
        """Computes rows of answers.

        Returns:
            For each request whose next token can be chosen now its logits, bf16, shape (vocabulary,).

        Raises:
            ZipMoeError: the provider's.
        """
        ...

    def advance_prompts(self, works: Sequence[TicketWork], scored: Sequence[bool]) -> list[bool]:
        """Computes a part of some prompts.

        Args:
            works: what the planner says.
            scored: of each, whether its tokens get log-probabilities.

        Returns:
            Of each, whether its keys and values are all there; if not, it is to be called again.

        Raises:
            ZipMoeError: the provider's; the prompts have to be begun anew.
        """
        ...

    def finish_prompt(self, ticket: Ticket) -> PromptResult:
        """Computes what follows the prompt that has just been completed."""
        ...

    def forget(self, ticket: Ticket) -> None:
        """Drops what is kept of a request beside its pages. Harmless when there is nothing."""
        ...
