"""A drafter that takes time is asked while its drafts pay for the time, and beside drafts that cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest

from tests.serving.test_speculation import answering
from zipmoe.serving.drafts import Draft, Drafts
from zipmoe.serving.expectations import FRESH_PASSES
from zipmoe.serving.speculation import AUTO, OFF, Speculation
from zipmoe.serving.ticket import Ticket


class ModelDrafter:
    """Drafts the numbers that follow the last token, and takes a second a draft."""

    source = "mtp"
    first_rates: ClassVar = (0.8, 0.6)

    def __init__(self, seconds: float | None, most_drafts: int = 15) -> None:
        self.most_drafts = most_drafts
        self.seconds = seconds
        self.asked: list[list[int]] = []
        self.left_out: set[Ticket] = set()
        self.forgotten: list[Ticket] = []

    def follows(self, ticket: Ticket) -> bool:
        return ticket not in self.left_out

    def draft(self, tickets: Sequence[Ticket], most: Sequence[int]) -> Drafts:
        self.asked.append(list(most))
        found = [
            Draft(tuple(range(ticket.tokens[-1] + 1, ticket.tokens[-1] + 1 + count)))
            for ticket, count in zip(tickets, most, strict=True)
        ]
        return Drafts(found, None if self.seconds is None else self.seconds * max(most))

    def forget(self, ticket: Ticket) -> None:
        self.forgotten.append(ticket)


def counting(number: int = 0, most: int = 10_000) -> Ticket:
    """A request at the next row of an answer that never repeats itself."""
    ticket = Ticket(number, [100 * number + 10, 100 * number + 11, 100 * number + 12], most)
    ticket.computed = len(ticket.tokens)
    ticket.append(100 * number + 13)
    return ticket


def run(speculation: Speculation, ticket: Ticket, steps: int, row_s: float, true: int) -> list[int]:
    """Computes steps of one request whose first `true` drafts of a step come true; returns the drafts of each step."""
    counts = []
    for _ in range(steps):
        speculation.propose([ticket])
        drafts = ticket.drafts
        counts.append(len(drafts))
        speculation.passed(1 + len(drafts), 1 + row_s * len(drafts))
        chosen = []
        for place in range(len(drafts) + 1):
            ticket.append(ticket.tokens[-1] + (1 if place < true else 1000))
            chosen.append(ticket.tokens[-1])
            if chosen[-1] != (*drafts, -1)[place]:
                break
        ticket.computed = len(ticket.tokens) - 1
        speculation.judge(ticket, chosen)
    return counts


def test_cheap_drafts_that_come_true_are_verified() -> None:
    drafter = ModelDrafter(0.01)
    counts = run(Speculation(AUTO, 16, drafter), counting(), 60, 0.02, true=99)
    assert min(counts[-10:]) >= 8


def test_only_as_many_are_drafted_as_come_true() -> None:
    drafter = ModelDrafter(0.05)
    counts = run(Speculation(AUTO, 16, drafter), counting(), 200, 0.05, true=1)
    assert set(counts[-20:]) == {1}


def test_a_drafter_that_takes_longer_than_its_drafts_save_is_not_asked() -> None:
    drafter = ModelDrafter(2.0)
    run(Speculation(AUTO, 16, drafter), counting(), 100, 0.02, true=99)
    assert 0 < len(drafter.asked) < 5


def test_a_drafter_whose_drafts_do_not_come_true_is_not_asked() -> None:
    drafter = ModelDrafter(0.2)
    run(Speculation(AUTO, 16, drafter), counting(), 100, 0.2, true=0)
    assert 0 < len(drafter.asked) < 60


def test_after_many_passes_the_drafter_is_tried_again() -> None:
    drafter = ModelDrafter(2.0)
    speculation = Speculation(AUTO, 16, drafter)
    run(speculation, counting(0), 100, 0.02, true=99)
    before = len(drafter.asked)
    drafter.seconds = 0.01
    run(speculation, counting(1, most=10**6), FRESH_PASSES + 50, 0.02, true=99)
    assert len(drafter.asked) > before + 20


def test_times_of_unusual_calls_are_not_expected_again() -> None:
    drafter = ModelDrafter(None)
    speculation = Speculation(AUTO, 16, drafter)
    run(speculation, counting(), 3, 0.02, true=99)
    assert not speculation._draft_times.known


@pytest.mark.parametrize(("most", "room", "expected"), [(3, 16, 3), (15, 8, 7), (OFF, 16, 0)])
def test_a_fixed_number_is_drafted_within_the_rows(most: int, room: int, expected: int) -> None:
    drafter, ticket = ModelDrafter(1.0), counting()
    Speculation(most, room, drafter).propose([ticket])
    assert len(ticket.drafts) == expected
    assert drafter.asked == ([[expected]] if expected else [])


def test_no_more_is_drafted_than_the_drafter_can() -> None:
    drafter, ticket = ModelDrafter(1.0, most_drafts=2), counting()
    Speculation(9, 16, drafter).propose([ticket])
    assert len(ticket.drafts) == 2


def test_the_likelier_draft_of_a_request_is_verified() -> None:
    speculation = Speculation(4, 16, ModelDrafter(0.1))
    quoting, plain = answering(0), counting(1)
    speculation._of(quoting).rates["match"].rates = [0.1] * 6
    speculation.propose([quoting, plain])
    assert (speculation.source_of(quoting), speculation.source_of(plain)) == ("mtp", "mtp")
    speculation._of(quoting).rates["match"].rates = [0.9] * 6
    speculation.propose([quoting, plain])
    assert (speculation.source_of(quoting), speculation.source_of(plain)) == ("match", "mtp")


def test_drafts_that_lost_are_judged_as_well() -> None:
    speculation = Speculation(2, 16, ModelDrafter(0.1))
    ticket = answering()
    speculation._of(ticket).rates["mtp"].rates = [0.1, 0.1]
    speculation.propose([ticket])
    assert speculation.source_of(ticket) == "match"
    speculation.judge(ticket, [6, 7, 8])  # as in the text; the other drafter's are 6 and 7, too
    assert speculation._requests[ticket].rates["mtp"].rates[0] > 0.1


def test_requests_that_the_drafter_does_not_follow_get_matches_only() -> None:
    drafter = ModelDrafter(0.1)
    speculation = Speculation(2, 16, drafter)
    followed, other = counting(0), counting(1)
    drafter.left_out = {other}
    speculation.propose([followed, other])
    assert (len(followed.drafts), len(other.drafts)) == (2, 0)
    drafter.left_out = {followed, other}
    speculation.propose([followed, other])
    assert drafter.asked == [[2]]


def test_a_request_that_is_gone_is_forgotten_by_every_drafter() -> None:
    drafter, ticket = ModelDrafter(0.1), counting()
    speculation = Speculation(2, 16, drafter)
    speculation.propose([ticket])
    speculation.forget(ticket)
    assert drafter.forgotten == [ticket]
    assert not speculation._requests
