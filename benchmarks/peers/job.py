"""What every system is given: prompts of random tokens, and the tokens that are forced upon it after them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

FIRST_TOKEN = 16
"""Tokens below it may be special ones."""


class PromptSequence(NamedTuple):
    """A prompt and what follows it, of which the last is never computed with."""

    prompt: tuple[int, ...]
    forced: tuple[int, ...]


@dataclass(frozen=True)
class ModelShape:
    """How much work a job is.

    Attributes:
        batch: sequences that are generated at once.
        prompt_tokens: of each.
        new_tokens: of each, at least 1.
    """

    batch: int
    prompt_tokens: int
    new_tokens: int

    @property
    def tokens(self) -> int:
        """The longest a sequence becomes."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True)
class PeerJob:
    """Sequences of one shape that are generated at once.

    `line` and `parse` are how it travels to a worker: three counts, then all prompts, then all forced tokens.
    """

    sequences: tuple[PromptSequence, ...]

    @property
    def shape(self) -> ModelShape:
        """Of all of them."""
        first = self.sequences[0]
        return ModelShape(len(self.sequences), len(first.prompt), len(first.forced))

    def line(self) -> str:
        """Writes it as a line of numbers, without its end."""
        shape = self.shape
        numbers = [shape.batch, shape.prompt_tokens, shape.new_tokens]
        for each in self.sequences:
            numbers.extend(each.prompt)
        for each in self.sequences:
            numbers.extend(each.forced)
        return " ".join(map(str, numbers))

    @classmethod
    def parse(cls, line: str) -> PeerJob:
        """Reads what `line` has written; raises ValueError where the counts are not those of the numbers."""
        batch, prompt, new, *tokens = map(int, line.split())
        if len(tokens) != batch * (prompt + new):
            raise ValueError(f"{len(tokens)} tokens for {batch} sequences of {prompt} and {new}")
        forced = tokens[batch * prompt :]
        return cls(
            tuple(
                PromptSequence(
                    tuple(tokens[index * prompt : (index + 1) * prompt]),
                    tuple(forced[index * new : (index + 1) * new]),
                )
                for index in range(batch)
            )
        )


def sequence_of(place: str, vocabulary: int, prompt_tokens: int, new_tokens: int) -> PromptSequence:
    """Draws a sequence; the same arguments give the same one, and fewer new tokens the beginning of it."""
    draws = [random.Random(f"{place} {part} {vocabulary} {prompt_tokens}") for part in ("prompt", "forced")]
    return PromptSequence(
        *(_draw(draw, vocabulary, n) for draw, n in zip(draws, (prompt_tokens, new_tokens), strict=True))
    )


def job_of(index: int, vocabulary: int, shape: ModelShape) -> PeerJob:
    """The job that all systems get as number `index` of a shape; a smaller batch has the first of its sequences."""
    return PeerJob(
        tuple(
            sequence_of(name, vocabulary, shape.prompt_tokens, shape.new_tokens)
            for name in sequence_names(index, shape.batch)
        )
    )


def sequence_names(index: int, batch: int) -> Iterable[str]:
    """Names of the sequences of a job, by which what stock makes of them is kept."""
    return (f"{index}-{place}" for place in range(batch))


def _draw(draw: random.Random, vocabulary: int, count: int) -> tuple[int, ...]:
    return tuple(draw.randrange(FIRST_TOKEN, vocabulary) for _ in range(count))
