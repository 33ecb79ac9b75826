"""Answers of one call: the requests behind them, and the choice of the best where more are generated than returned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from zipmoe.services.router.engine.request import (
    Event,
    GenerationSpec,
    RequestFinished,
    RequestProgress,
    RequestStarted,
    RequestToken,
)


class ChoiceEvent(NamedTuple):
    """An event, and the number of the answer that it belongs to."""

    choice: int
    event: Event
    discarded_tokens: int = 0
    """Tokens of the answers that are not returned; of the end of choice 0."""


class Choices:
    """Passes on the events of all answers, or holds them back until the best are known.

    Thread: one at a time.
    """

    def __init__(self, spec: GenerationSpec) -> None:
        """Expects the events of `spec.best_of` answers."""
        self._returned = spec.choices
        self._left = spec.best_of
        self._held: list[list[RequestToken | RequestFinished]] | None = None
        if spec.best_of > spec.choices:
            self._held = [[] for _ in range(spec.best_of)]

    @property
    def complete(self) -> bool:
        """Whether all answers have ended."""
        return not self._left

    def take(
        self, choice: int, event: RequestProgress | RequestStarted | RequestToken | RequestFinished
    ) -> Iterator[ChoiceEvent]:
        """Takes an event of an answer, and yields the events for the client; only answer 0 has progress and a start."""
        self._left -= isinstance(event, RequestFinished)
        if isinstance(event, RequestProgress | RequestStarted):
            if not choice:
                yield ChoiceEvent(0, event)
            return
        if self._held is None:
            yield ChoiceEvent(choice, event)
            return
        self._held[choice].append(event)
        if self.complete:
            yield from self._best(self._held)

    def _best(self, answers: list[list[RequestToken | RequestFinished]]) -> Iterator[ChoiceEvent]:
        """Yields the likeliest answers, best first; of equal ones the answer with the smaller number."""
        ranked = sorted(answers, key=_mean_logprob, reverse=True)
        discarded = sum(len(answer) - 1 for answer in ranked[self._returned :])
        for number, answer in enumerate(ranked[: self._returned]):
            for event in answer:
                yield ChoiceEvent(number, event, discarded if not number else 0)


def _mean_logprob(answer: list[RequestToken | RequestFinished]) -> float:
    """Returns the mean log-probability of an answer's tokens."""
    logprobs = [event.choice.logprob or 0.0 for event in answer if isinstance(event, RequestToken)]
    return math.fsum(logprobs) / max(1, len(logprobs))
