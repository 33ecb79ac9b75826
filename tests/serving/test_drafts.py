"""Drafts repeat what followed the longest earlier match of a sequence's end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zipmoe.serving.drafts import KEY_TOKENS, MOST_CANDIDATES, MOST_MATCH, Draft, MatchDrafter

TOKENS = st.lists(st.integers(0, 3), max_size=80)


def longest_match(tokens: list[int], most: int) -> Draft:
    """The readable twin: compares every earlier end, the latest first."""
    end = len(tokens)
    same_key = [
        earlier
        for earlier in range(end - 1, KEY_TOKENS - 1, -1)
        if tokens[earlier - KEY_TOKENS : earlier] == tokens[end - KEY_TOKENS :]
    ][:MOST_CANDIDATES]
    best, length = 0, 0
    for earlier in same_key:
        matched = 0
        while matched < min(earlier, MOST_MATCH) and tokens[earlier - 1 - matched] == tokens[end - 1 - matched]:
            matched += 1
        if matched > length:
            best, length = earlier, matched
    if not best or not most:
        return Draft()
    continued = list(tokens)
    for _ in range(most):
        continued.append(continued[best + len(continued) - end])
    return Draft(tuple(continued[end:]), length)


@given(TOKENS, st.integers(0, 20), st.integers(0, 80))
def test_a_draft_continues_the_longest_match_however_the_sequence_grew(tokens: list[int], most: int, seen: int) -> None:
    drafter = MatchDrafter()
    drafter.draft(tokens[:seen], most)
    assert drafter.draft(tokens, most) == longest_match(tokens, most)


def test_a_period_is_repeated_beyond_the_end() -> None:
    assert MatchDrafter().draft([9, 1, 2, 3, 1, 2, 3], 5) == Draft((1, 2, 3, 1, 2), 3)


def test_without_a_match_there_is_no_draft() -> None:
    drafter = MatchDrafter()
    assert drafter.draft([], 4) == Draft()
    assert drafter.draft([1], 4) == Draft()
    assert drafter.draft([1, 2, 3, 1], 4) == Draft()  # one token is too short a match
    assert drafter.draft([1, 2, 3, 1, 2], 4) == Draft((3, 1, 2, 3), 2)
