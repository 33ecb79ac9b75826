"""Drafts the next tokens of requests: the contract, and drafts from a request's own tokens.

`MatchDrafts` repeats what followed the longest earlier match. The router's `MtpDrafts` asks layers of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple, Protocol

from zipmoe.serving.ticket import Ticket

MOST_DRAFTS = 15
"""Most tokens of a draft: with the next row they are the 16 rows that kernels compute together."""

KEY_TOKENS = 2
"""Tokens of the shortest match. A match of one token predicts too little to be worth a row."""

MOST_MATCH = 32
MOST_CANDIDATES = 16
"""Limits of a search: tokens that are compared for a candidate, and candidates, latest first."""


class Draft(NamedTuple):
    """Tokens that may follow a sequence.

    Attributes:
        tokens: the drafted tokens; empty if there is no match.
        match_tokens: length of the match, at most `MOST_MATCH`; 0 if the draft is no match.
        certain: whether the tokens follow in any case, by the grammar of the answer.
    """

    tokens: tuple[int, ...] = ()
    match_tokens: int = 0
    certain: bool = False

    def grade(self, place: int) -> int:
        """Returns the kind of the token at a place, among which acceptance differs.

        That is the order of magnitude of the match before the token, or the place itself in a draft that is no match.
        """
        return (self.match_tokens + place).bit_length() - 1 if self.match_tokens else place


class Drafts(NamedTuple):
    """Drafts of a call.

    Attributes:
        drafts: the draft of each request.
        seconds: time that calls like this one take; 0 if it is negligible, None if there are none like this one.
    """

    drafts: list[Draft]
    seconds: float | None = 0.0


class Drafter(Protocol):
    """Drafts the next tokens of requests.

    Attributes:
        source: name of the kind of drafter, for metrics.
        first_rates: acceptance before anything was verified, by the grade of the token.
        most_drafts: most tokens of a draft.
    """

    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def first_rates(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def most_drafts(self) -> int: ...  # noqa: D102

    def follows(self, ticket: Ticket) -> bool:
        """Whether the drafter can draft for a request."""

    def draft(self, tickets: Sequence[Ticket], most: Sequence[int]) -> Drafts:
        """Drafts the tokens that follow those of requests at the next row of an answer.

        Args:
            tickets: the requests.
            most: most tokens of each draft.
        """

    def forget(self, ticket: Ticket) -> None:
        """Drops the state of a request. A repeated call has no effect."""


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


class MatchDrafts:
    """A `Drafter` of continuations of the requests' own tokens."""

    source = "match"
    first_rates: ClassVar = (0.3, 0.4, 0.5, 0.7, 0.8, 0.9)
    most_drafts = MOST_DRAFTS

    def __init__(self) -> None:
        """Makes a drafter without requests."""
        self._drafters: dict[Ticket, MatchDrafter] = {}

    def follows(self, ticket: Ticket) -> bool:
        """Always True."""
        return True

    def draft(self, tickets: Sequence[Ticket], most: Sequence[int]) -> Drafts:
        """Drafts for each request; `Drafter.draft` has the arguments."""
        drafters = [self._drafters.setdefault(ticket, MatchDrafter()) for ticket in tickets]
        calls = zip(drafters, tickets, most, strict=True)
        return Drafts([drafter.draft(ticket.tokens, limit) for drafter, ticket, limit in calls])

    def forget(self, ticket: Ticket) -> None:
        """Drops the state of a request. A repeated call has no effect."""
        self._drafters.pop(ticket, None)
