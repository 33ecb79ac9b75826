"""Drafts the next tokens of a request from its own tokens: repeats what followed the longest earlier match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

KEY_TOKENS = 2
"""Tokens of the shortest match. A match of one token predicts too little to be worth a row."""

MOST_MATCH = 32
MOST_CANDIDATES = 16
"""Limits of a search: tokens that are compared for a candidate, and candidates, latest first."""


class Draft(NamedTuple):
    """Tokens that may follow a sequence.

    Attributes:
        tokens: the drafted tokens; empty if there is no match.
        match_tokens: length of the match, at most `MOST_MATCH`.
        certain: whether the tokens follow in any case.
    """

    tokens: tuple[int, ...] = ()
    match_tokens: int = 0
    certain: bool = False


class MatchDrafter:
    """Drafts continuations of one growing sequence.

    All ends of the sequence with the same last `KEY_TOKENS` tokens form a chain, from the latest to the earliest, as in
    the match search of an LZ77 compressor (RFC 1951, section 4). A draft may run into itself, so that a period is
    repeated.

    Cost: time and memory in proportion to the tokens; a search compares at most `MOST_CANDIDATES * MOST_MATCH` tokens.
    """

    def __init__(self) -> None:
        """Makes a drafter of the empty sequence."""
        self._latest: dict[tuple[int, ...], int] = {}
        self._earlier: list[int] = [0] * KEY_TOKENS
        """For each end of the sequence, the next earlier end with the same key; 0 if there is none."""

    def draft(self, tokens: Sequence[int], most: int) -> Draft:
        """Drafts up to `most` tokens.

        Args:
            tokens: the sequence. It begins with the sequence of the call before.
            most: most tokens of the draft.
        """
        end = len(tokens)
        self._index(tokens, end)
        if most < 1 or end < KEY_TOKENS:
            return Draft()
        best, length = 0, 0
        for candidate in self._candidates(tuple(tokens[end - KEY_TOKENS : end])):
            matched = _match(tokens, candidate, end)
            if matched > length:
                best, length = candidate, matched
        if not best:
            return Draft()
        drafted: list[int] = []
        for place in range(best, best + most):
            drafted.append(tokens[place] if place < end else drafted[place - end])
        return Draft(tuple(drafted), length)

    def _index(self, tokens: Sequence[int], end: int) -> None:
        """Adds all ends before `end` to the chains."""
        for each in range(len(self._earlier), end):
            key = tuple(tokens[each - KEY_TOKENS : each])
            self._earlier.append(self._latest.get(key, 0))
            self._latest[key] = each

    def _candidates(self, key: tuple[int, ...]) -> Iterator[int]:
        candidate = self._latest.get(key, 0)
        for _ in range(MOST_CANDIDATES):
            if not candidate:
                return
            yield candidate
            candidate = self._earlier[candidate]


def _match(tokens: Sequence[int], earlier: int, end: int) -> int:
    """Returns how many tokens before two ends of a sequence are equal, at most `MOST_MATCH`."""
    most = min(earlier, MOST_MATCH)
    length = KEY_TOKENS
    while length < most and tokens[earlier - 1 - length] == tokens[end - 1 - length]:
        length += 1
    return length
