"""A request that goes on from the computed prompt of another."""

from __future__ import annotations

import pytest

from tests.serving.test_planner import planner, run, ticket
from zipmoe.serving.pages import PAGE_TOKENS
from zipmoe.serving.planner import StepPlanner
from zipmoe.serving.ticket import Ticket


def computed(plan: StepPlanner, prompt: int, answer: int = 4) -> Ticket:
    first = ticket(0, prompt, answer)
    plan.submit(first)
    step = plan.plan()
    plan.complete(step.work)
    return first


def test_full_pages_are_shared_and_the_last_one_is_not() -> None:
    plan = planner()
    first, second = computed(plan, 2 * PAGE_TOKENS + 5), ticket(1, 2 * PAGE_TOKENS + 5, first=0)
    assert plan.fork(first, second, shares_pages=True)
    assert second.pages[:2] == first.pages[:2]
    assert second.pages[2] != first.pages[2]
    assert plan.ledger.counts().used == 4
    assert second.reused_tokens == second.computed == first.computed
    plan.drop(first)
    assert plan.ledger.counts().used == 3, "the shared pages stay while one of the two runs"
    plan.drop(second)
    assert plan.ledger.counts().used == 0


def test_caches_of_their_own_share_no_page() -> None:
    plan = planner()
    first, second = computed(plan, PAGE_TOKENS), ticket(1, PAGE_TOKENS, first=0)
    assert plan.fork(first, second, shares_pages=False)
    assert not set(first.pages) & set(second.pages)


@pytest.mark.parametrize("limits", [{"max_running": 1}, {"pages": 2}])
def test_without_room_a_request_waits_and_is_computed_anew(limits: dict[str, int]) -> None:
    plan = planner(**limits)
    first, second = computed(plan, PAGE_TOKENS + 5), ticket(1, PAGE_TOKENS + 5, first=0)
    assert not plan.fork(first, second, shares_pages=True)
    assert plan.waiting == [second]
    plan.drop(first)
    step = run(plan)
    assert [work.ticket for work in step.work] == [second]


def test_a_request_counts_for_all_its_answers_while_it_waits() -> None:
    from zipmoe.errors import ResourceExhausted

    plan = planner(max_waiting=4)
    many = ticket(0, 5)
    many.choices = 6
    plan.submit(many)  # alone it may ask for any number
    with pytest.raises(ResourceExhausted, match="6 requests are waiting"):
        plan.submit(ticket(6, 5))
    plan = planner(max_waiting=4)
    plan.submit(ticket(0, 5))
    many = ticket(1, 5)
    many.choices = 4
    with pytest.raises(ResourceExhausted, match="1 requests are waiting, with 4 more"):
        plan.submit(many)
