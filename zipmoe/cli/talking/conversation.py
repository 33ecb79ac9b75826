"""Keeps a conversation within the context of the model by forgetting the oldest turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zipmoe.client import Message

_LEAST_ANSWER_TOKENS: Final = 32
"""Tokens that stay free for an answer. A context of less than four times as many keeps a quarter free."""


class Conversation:
    """Turns of a user and a model after an optional system message. A turn is a question with its answer."""

    def __init__(self, system: Message | None = None) -> None:
        self._opening = [] if system is None else [system]
        self._turns: list[tuple[Message, Message]] = []

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self._turns.clear()

    def asking(self, question: Message) -> list[Message]:
        """Returns the messages of the next prompt: system message, turns and question."""
        return [*self._opening, *(message for turn in self._turns for message in turn), question]

    def answered(self, question: Message, answer: Message) -> None:
        """Adds a turn."""
        self._turns.append((question, answer))

    def make_room(
        self, question: Message, context_tokens: int, count_tokens: Callable[[Sequence[Message]], int]
    ) -> tuple[int, int]:
        """Forgets the oldest turns until the context has room for an answer.

        Args:
            question: the next question.
            context_tokens: the longest prompt plus answer, in tokens.
            count_tokens: counts the tokens of a conversation, template included.

        Returns:
            Tokens that the answer may have, and the number of forgotten turns. The tokens are at least 1, because the
            router reports the error if nothing fits.
        """
        wanted = min(_LEAST_ANSWER_TOKENS, max(1, context_tokens // 4))
        forgotten = 0
        while (room := context_tokens - count_tokens(self.asking(question))) < wanted and self._turns:
            del self._turns[0]
            forgotten += 1
        return max(1, room), forgotten
