"""Distributions of lengths in tokens, written as one word: `128`, `uniform:16:256`, `lognormal:200:0.8`."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from zipmoe.errors import InvalidRequest


class Lengths(ABC):
    """A distribution of lengths, all at least 1."""

    @abstractmethod
    def draw(self, source: random.Random) -> int:
        """Draws one length."""


@dataclass(frozen=True)
class Fixed(Lengths):
    """A constant length."""

    tokens: int

    def draw(self, source: random.Random) -> int:
        """Returns the constant length."""
        return self.tokens


@dataclass(frozen=True)
class Uniform(Lengths):
    """A uniform distribution from `least` to `most`, both included."""

    least: int
    most: int

    def draw(self, source: random.Random) -> int:
        """Draws a length, all with equal probability."""
        return source.randint(self.least, self.most)


@dataclass(frozen=True)
class LogNormal(Lengths):
    """exp(N(ln median, sigma)), similar to real prompts and answers: most are short, few are very long.

    Attributes:
        median: median length in tokens.
        sigma: standard deviation of the logarithm.
        most: upper bound of the draws, in tokens.
    """

    median: float
    sigma: float
    most: int

    def draw(self, source: random.Random) -> int:
        """Draws a length, rounded and limited to 1 .. `most`."""
        return max(1, min(self.most, round(math.exp(source.gauss(math.log(self.median), self.sigma)))))


_LONGEST_OVER_MEDIAN = 16


def parse_lengths(name: str, text: str) -> Lengths:
    """Parses a distribution: `N`, `uniform:LEAST:MOST` or `lognormal:MEDIAN:SIGMA[:MOST]`.

    Raises:
        InvalidRequest: the text is no distribution; the message names the option.
    """
    kind, *words = text.split(":")
    try:
        made = _made(kind, words)
    except ValueError:
        made = None
    if made is None:
        raise InvalidRequest(
            f"{name} has to be N, uniform:LEAST:MOST or lognormal:MEDIAN:SIGMA[:MOST] in tokens, not {text!r}"
        )
    return made


def _made(kind: str, words: Sequence[str]) -> Lengths | None:
    if not words:
        return Fixed(int(kind)) if int(kind) >= 1 else None
    if kind == "uniform" and len(words) == 2:
        least, most = int(words[0]), int(words[1])
        return Uniform(least, most) if 1 <= least <= most else None
    if kind == "lognormal" and len(words) in (2, 3):
        median, sigma = float(words[0]), float(words[1])
        if not (1 <= median < math.inf and 0 <= sigma < math.inf):
            return None
        most = int(words[2]) if len(words) == 3 else round(_LONGEST_OVER_MEDIAN * median)
        return LogNormal(median, sigma, most) if most >= 1 else None
    return None
