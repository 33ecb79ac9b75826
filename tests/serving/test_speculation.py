"""Drafts are verified where they make tokens cheaper, as measured, and never where a row would be in the way."""

from __future__ import annotations

import pytest

from zipmoe.serving.drafts import Draft, MatchDrafts
from zipmoe.serving.expectations import FRESH_PASSES, AcceptanceRates, PassTimes
from zipmoe.serving.speculation import AUTO, OFF, Speculation
from zipmoe.serving.ticket import Ticket

PERIOD = [5, 6, 7, 8]


def answering(number: int = 0, periods: int = 4, most: int = 200) -> Ticket:
    """A request at the next row of an answer that repeats itself."""
    ticket = Ticket(number, PERIOD * periods, most)
    ticket.computed = len(ticket.tokens)
    ticket.append(PERIOD[0])
    return ticket


def run(speculation: Speculation, ticket: Ticket, steps: int, row_s: float, *, accepts: bool) -> list[int]:
    """Computes steps of one request whose passes take 1 + `row_s` a further row; returns the drafts of each step."""
    counts = []
    for _ in range(steps):
        speculation.propose([ticket])
        drafts = ticket.drafts
        counts.append(len(drafts))
        speculation.passed(1 + len(drafts), 1 + row_s * len(drafts))
        chosen = []
        for place in range(len(drafts) + 1):
            follows = PERIOD[len(ticket.tokens) % len(PERIOD)]
            ticket.append(follows if accepts else 100 + len(ticket.tokens))
            chosen.append(ticket.tokens[-1])
            if chosen[-1] != (*drafts, -1)[place]:
                break
        ticket.computed = len(ticket.tokens) - 1
        speculation.judge(ticket, chosen)
        if not accepts:  # the end of the sequence matches again
            for token in PERIOD:
                ticket.append(token)
            ticket.computed = len(ticket.tokens) - 1
    return counts


def test_cheap_rows_whose_drafts_come_true_are_all_verified() -> None:
    counts = run(Speculation(AUTO, 16), answering(most=10_000), 40, 0.02, accepts=True)
    assert counts[-10:] == [15] * 10


def test_rows_that_cost_a_pass_each_are_not_verified() -> None:
    counts = run(Speculation(AUTO, 16), answering(most=10_000), 100, 1.2, accepts=True)
    assert sum(counts[20:]) == 0
    assert any(counts[:20])  # it was tried


def test_drafts_that_do_not_come_true_are_not_verified() -> None:
    counts = run(Speculation(AUTO, 16), answering(most=100_000), 200, 0.3, accepts=False)
    assert sum(counts[100:]) == 0


def test_between_the_extremes_as_many_are_verified_as_make_tokens_cheapest() -> None:
    """Each draft comes true with 0.5; a pass of r rows takes 1 + 0.2 (r - 1): (1 + 1/2 + 1/4) / 1.4 is largest."""
    speculation = Speculation(AUTO, 16)
    for rows in (1, 2, 4, 8, 16):
        speculation.passed(rows, 1 + 0.2 * (rows - 1))
    speculation._rates["match"] = AcceptanceRates([0.5])
    ticket = answering()
    speculation.propose([ticket])
    assert len(ticket.drafts) in (1, 2)  # 1.5 / 1.2 and 1.75 / 1.4 are equal


def test_a_fixed_number_is_always_verified_and_off_means_none() -> None:
    for most, expected in ((3, 3), (OFF, 0)):
        ticket = answering()
        speculation = Speculation(most, 16)
        for rows in (1, 4):
            speculation.passed(rows, float(rows))
        speculation.propose([ticket])
        assert len(ticket.drafts) == expected
        assert speculation.on == bool(expected)


def test_drafts_end_where_the_answer_must_end() -> None:
    ticket = answering(most=len(PERIOD) * 4 + 4)  # one token is there, and three more fit
    Speculation(9, 16).propose([ticket])
    assert len(ticket.drafts) == 2  # the third needs no row


def test_rows_of_other_answers_leave_less_room() -> None:
    tickets = [answering(number) for number in range(6)]
    speculation = Speculation(15, 8)
    speculation.propose(tickets)
    assert sum(len(each.drafts) for each in tickets) == 2
    for token in PERIOD:
        tickets[0].append(token)  # five rows of it are computed again
    speculation.propose(tickets)
    assert not any(each.drafts for each in tickets)


def test_only_the_next_row_of_an_answer_is_followed_by_drafts() -> None:
    paused, prompt, complete = answering(0), Ticket(1, PERIOD * 4, 99), answering(2)
    paused.paused = True
    complete.computed += 1
    for each in (paused, prompt, complete):
        each.drafts = (1, 2)
    Speculation(4, 16).propose([paused, prompt, complete])
    assert not any(each.drafts for each in (paused, prompt, complete))


def test_several_requests_share_the_rows_by_what_each_is_likely_to_gain() -> None:
    speculation = Speculation(AUTO, 16)
    for rows in (2, 8, 16):
        speculation.passed(rows, 1 + 0.05 * rows)
    sure, unsure = answering(0, periods=9), answering(1, periods=1)
    speculation.propose([sure, unsure])
    assert len(sure.drafts) > len(unsure.drafts)


def test_times_of_rows_are_interpolated_and_go_on_beyond_the_tried() -> None:
    times = PassTimes()
    assert times.expected(4) == 1.0
    times.note(1, 2.0)
    assert times.expected(5) == pytest.approx(2.4)
    times.note(5, 4.0)
    assert times.expected(3) == pytest.approx(3.0)
    assert times.expected(9) == pytest.approx(6.0)
    times.note(9, 3.0)
    assert times.expected(12) == pytest.approx(4.0)  # a longer pass is never expected to be shorter


def test_shorter_passes_than_any_tried_are_expected_to_be_cheaper() -> None:
    times = PassTimes()
    times.note(6, 5.0)
    assert times.expected(2) == pytest.approx(5 / 1.2)
    times.note(8, 5.0)
    assert times.expected(2) == pytest.approx(5 / 1.2)
    times.note(8, 9.0)
    times.note(8, 9.0)
    assert times.expected(5) == pytest.approx(3.0)
    assert times.expected(3) < 1e-6  # below what a pass can take: it is tried at once


def test_a_single_slow_pass_is_no_rule() -> None:
    times = PassTimes()
    for seconds in (1.0, 9.0, 1.1):
        times.note(4, seconds)
    assert times.expected(4) == pytest.approx(1.1)


def test_old_times_are_forgotten_so_that_rows_are_tried_again() -> None:
    times = PassTimes()
    times.note(8, 50.0)
    for _ in range(FRESH_PASSES):
        times.note(1, 1.0)
    assert times.expected(8) == pytest.approx(50.0)
    times.note(1, 1.0)
    assert times.expected(8) < 2
    times.note(8, 3.0)
    assert times.expected(8) == pytest.approx(3.0)


def test_chances_of_a_draft_fall_with_every_token() -> None:
    rates = AcceptanceRates([0.5, 0.5])
    assert list(rates.chances(Draft((1, 2, 3), 4))) == [0.5, 0.25, 0.125]


def test_acceptance_is_learned_per_length_of_the_match() -> None:
    rates = AcceptanceRates(MatchDrafts.first_rates)
    before = list(rates.rates)
    for _ in range(50):
        rates.note(Draft((1,), 2).grade(0), False)
        rates.note(Draft((1,), 30).grade(0), True)
    assert rates.rates[1] < 0.01
    assert rates.rates[4] > 0.99
    assert rates.rates[2] == before[2]


def test_a_request_that_is_gone_leaves_nothing_behind() -> None:
    speculation, ticket = Speculation(AUTO, 16), answering()
    speculation.propose([ticket])
    speculation.forget(ticket)
    speculation.forget(ticket)
    speculation.judge(ticket, [1])
    assert not speculation._requests and not speculation._matches._drafters
