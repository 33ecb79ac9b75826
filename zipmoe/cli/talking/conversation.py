"""A conversation that stays within the model's context: what no longer fits is forgotten, oldest turns first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zipmoe.client import Message

_LEAST_ANSWER_TOKENS: Final = 32
"""Room that an answer needs to say anything; a smaller context leaves a quarter."""


class Conversation:
    """Turns of a user and a model behind an optional system message. Turns are whole: a question and its answer."""

    def __init__(self, system: Message | None = None) -> None:
        self._opening = [] if system is None else [system]
        self._turns: list[tuple[Message, Message]] = []

    def __len__(self) -> int:
        return len(self._turns)

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self._turns.clear()

    def asking(self, question: Message) -> list[Message]:
        """What the model sees when it is asked."""
        return [*self._opening, *(message for turn in self._turns for message in turn), question]

    def answered(self, question: Message, answer: Message) -> None:
        """Remembers a turn."""
        self._turns.append((question, answer))

    def make_room(
        self, question: Message, context_tokens: int, count_tokens: Callable[[Sequence[Message]], int]
    ) -> tuple[int, int]:
        """Forgets the oldest turns until an answer fits behind the question.

        Args:
            question: what is asked next.
            context_tokens: the longest prompt plus answer.
            count_tokens: tokens of a conversation, template included.

        Returns:
            Tokens that the answer may have, at least 1 even where nothing fits: the router says so then; and how many
            turns have been forgotten.
        """
        wanted = min(_LEAST_ANSWER_TOKENS, max(1, context_tokens // 4))
        forgotten = 0
        while (room := context_tokens - count_tokens(self.asking(question))) < wanted and self._turns:
            del self._turns[0]
            forgotten += 1
        return max(1, room), forgotten
