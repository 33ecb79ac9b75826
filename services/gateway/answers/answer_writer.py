"""The contract of the dialects' writers: how the events of the router become an HTTP answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zipmoe.client import Event, TokenText
from zipmoe.services.gateway.answers.keep_alive import COMMENT
from zipmoe.services.gateway.http_problem import HttpProblem
from zipmoe.services.gateway.json_frames import frame

Texts = Mapping[int, TokenText]
"""Texts by token id, for the tokens in the log-probabilities."""


class AnswerWriter(ABC):
    """Writes the answer to one HTTP request in one dialect, as a whole or as a stream.

    Attributes:
        with_logprobs: whether the writer needs the texts of single tokens.
        keep_alive: what a silent stream gets.
    """

    with_logprobs: bool = False
    keep_alive: bytes = COMMENT

    @abstractmethod
    def whole(self, answers: Sequence[Sequence[Event]], texts: Texts) -> dict[str, Any]:
        """Returns the whole answer.

        Args:
            answers: all events of each prompt, in the order of the prompts.
            texts: the texts of all tokens, if the writer needs them.

        Raises:
            Unavailable: the events of a prompt end before its answer is complete.
        """

    @abstractmethod
    def frames(self, prompt: int, event: Event, texts: Texts) -> Iterator[bytes]:
        """Yields the frames of a stream for one event.

        Args:
            prompt: number of the prompt, from 0.
            event: the event.
            texts: the texts of the event's tokens, if the writer needs them.
        """

    def end(self) -> Iterator[bytes]:
        """Yields the frames after the last event."""
        yield from ()

    def failure(self, problem: HttpProblem) -> bytes:
        """Returns the last frame of a stream that fails half-way."""
        return frame(problem.body())
