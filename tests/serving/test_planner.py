from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zipmoe.errors import ResourceExhausted
from zipmoe.serving.pages import PAGE_TOKENS, PageLedger, pages_of
from zipmoe.serving.planner import Step, StepLimits, StepPlanner, TicketWork
from zipmoe.serving.ticket import FEWEST_ROWS, PageReuse, Ticket


def planner(pages: int = 8, **limits: int) -> StepPlanner:
    given = {
        "max_running": 4,
        "max_waiting": 8,
        "max_waiting_tokens": 4096,
        "answer_rows": 1,
        "group_rows": 0,
        **limits,
    }
    return StepPlanner(PageLedger(pages), StepLimits(**given))


def ticket(number: int, prompt: int, answer: int = 4, first: int | None = None) -> Ticket:
    begin = 1000 * number if first is None else first
    return Ticket(number, list(range(begin, begin + prompt)), prompt + answer)


def run(plan: StepPlanner, chosen: dict[int, int] | None = None) -> Step:
    """One step; every request that is complete gets a token."""
    step = plan.plan()
    plan.complete(step.work)
    for work in step.work:
        if work.completes:
            work.ticket.append(-1 - work.ticket.number)
    return step


def shape(step: Step) -> list[tuple[int, int, int, bool]]:
    return [(work.ticket.number, work.begin, work.end, work.in_prompt) for work in step.work]


def test_a_step_has_the_next_row_of_every_answer_and_one_prompt() -> None:
    plan = planner()
    for number, prompt in enumerate((6, 40, 7)):
        plan.submit(ticket(number, prompt))
    assert shape(run(plan)) == [(0, 0, 6, True)]
    assert shape(run(plan)) == [(0, 6, 7, False), (1, 0, 40, True)]
    assert shape(run(plan)) == [(0, 7, 8, False), (1, 40, 41, False), (2, 0, 7, True)]
    assert shape(run(plan)) == [(0, 8, 9, False), (1, 41, 42, False), (2, 7, 8, False)]


def test_prompts_that_take_several_steps_take_turns() -> None:
    plan = planner()
    for number, prompt in enumerate((50, 40, 7)):
        plan.submit(ticket(number, prompt))
    seen = []
    for _ in range(5):
        (work,) = plan.plan().work  # nobody reports it as complete
        seen.append((work.ticket.number, work.rows))
    assert seen == [(0, 50), (1, 40), (2, 7), (0, 50), (1, 40)]


def test_prompts_that_are_new_begin_together_while_they_are_few_and_stay_together() -> None:
    plan = planner(pages=16, max_running=5, group_rows=60)
    for number, prompt in enumerate((20, 30, 40, 10, 70)):
        plan.submit(ticket(number, prompt))

    def next_numbers() -> list[int]:
        return [work.ticket.number for work in plan.plan().work]

    assert [next_numbers() for _ in range(4)] == [[0, 1, 3], [2], [4], [0, 1, 3]]
    plan.running[1].paused = True
    assert [next_numbers() for _ in range(3)] == [[2], [4], [0, 3]]
    plan.running[1].paused = False
    assert [next_numbers() for _ in range(3)] == [[1, 0, 3], [2], [4]]


def test_a_prompt_joins_no_group_that_has_begun() -> None:
    plan = planner(group_rows=100)
    plan.submit(ticket(0, 20))
    assert shape(plan.plan()) == [(0, 0, 20, True)]
    plan.submit(ticket(1, 20))
    assert [shape(plan.plan()) for _ in range(3)] == [[(0, 0, 20, True)], [(1, 0, 20, True)], [(0, 0, 20, True)]]


def test_a_request_waits_until_there_are_pages_for_its_prompt_and_a_first_token() -> None:
    plan = planner(pages=2)
    old, young = ticket(0, 31, 33), ticket(1, 31, 33)
    plan.submit(old)
    plan.submit(young)
    assert shape(run(plan)) == [(0, 0, 31, True)]
    assert plan.waiting == [young]  # one page is free, but the answer would need another
    plan.drop(old)
    assert shape(run(plan)) == [(1, 0, 31, True)]


def test_a_preempted_request_keeps_what_nobody_else_needed() -> None:
    plan = planner(pages=3)
    old, young = ticket(0, 20, 60), ticket(1, 20, 40)
    plan.submit(old)
    plan.submit(young)
    while not run(plan).preempted:
        pass
    plan.drop(old)
    assert shape(run(plan)) == [(1, 32, 33, False)]


def test_a_preempted_request_replays_its_answer_row_by_row() -> None:
    plan = planner(pages=3)
    old, young = ticket(0, 20, 60), ticket(1, 20, 40)
    young.reuse = PageReuse.NOTHING
    plan.submit(old)
    plan.submit(young)
    preempted: list[Ticket] = []
    while not preempted:
        preempted = run(plan).preempted
    assert preempted == [young]
    assert young.computed == 0
    assert young.pages == []
    answer = len(young.tokens) - 20
    assert answer > 1
    plan.drop(old)
    steps = [shape(run(plan))[0] for _ in range(answer)]
    assert steps[0] == (1, 0, 20, True)
    assert steps[1:] == [(1, 19 + row, 20 + row, False) for row in range(1, answer)]


def test_a_paused_request_is_left_out_and_gives_way_first() -> None:
    plan = planner(pages=3)
    paused, young = ticket(0, 20, 40), ticket(1, 20, 60)
    plan.submit(paused)
    plan.submit(young)
    run(plan), run(plan)
    paused.paused = True
    preempted: list[Ticket] = []
    while not preempted:
        step = run(plan)
        assert [work.ticket for work in step.work] == [young]
        preempted = step.preempted
    assert preempted == [paused]


def test_a_paused_request_keeps_neither_pages_nor_a_turn_from_those_that_wait() -> None:
    plan = planner(pages=2, max_running=1)
    paused, waiting = ticket(0, 40, 20), ticket(1, 40, 20)
    plan.submit(paused)
    run(plan)
    plan.submit(waiting)
    assert shape(run(plan)) == [(0, 40, 41, False)]
    paused.paused = True
    assert shape(run(plan)) == [(1, 0, 40, True)]
    assert paused in plan.waiting
    waiting.paused = True
    assert plan.idle
    paused.paused = False
    assert run(plan).work[0].ticket is paused


def test_a_prefix_that_another_has_computed_is_taken_over() -> None:
    plan = planner(pages=16)
    plan.submit(ticket(0, 70, first=5))
    run(plan)
    plan.submit(ticket(1, 80, first=5))
    assert shape(run(plan))[1] == (1, 64, 80, True)
    exact = ticket(2, 66, first=5)  # only two rows would be left
    plan.submit(exact)
    assert shape(run(plan))[-1] == (2, 32, 66, True)
    assert exact.adopted_tokens == 32


def second_turn(reuse: PageReuse, adopts_any: bool = False) -> tuple[Ticket, StepPlanner]:
    """A question of 40 tokens and its answer of 30, then the next question."""
    plan = planner(pages=16)
    first = ticket(0, 40, 60)
    first.reuse, first.adopts_any = reuse, adopts_any
    plan.submit(first)
    for _ in range(30):
        run(plan)
    plan.drop(first)
    second = Ticket(1, [*first.tokens, *range(9)], 100, reuse, adopts_any)
    plan.submit(second)
    return second, plan


@pytest.mark.parametrize(
    ("reuse", "adopts_any", "begin", "approximate", "alone"),
    [
        (PageReuse.NOTHING, False, 0, 0, 0),
        (PageReuse.PROMPTS, False, 32, 0, 0),  # the second page holds tokens of question and answer
        (PageReuse.ALL, False, 64, 0, 0),
        (PageReuse.NOTHING, True, 64, 64, 24),
        (PageReuse.PROMPTS, True, 64, 24, 24),
        (PageReuse.ALL, True, 64, 0, 0),
    ],
)
def test_a_second_turn_adopts_the_pages_with_its_own_bits(
    reuse: PageReuse, adopts_any: bool, begin: int, approximate: int, alone: int
) -> None:
    second, plan = second_turn(reuse, adopts_any)
    (work,) = run(plan).work
    assert (work.begin, work.end, work.in_prompt) == (begin, 79, True)
    assert (second.reused_tokens, second.approximate_tokens) == (begin, approximate)
    assert second.alone[:79].count(1) == alone


def test_a_page_of_a_prompt_is_published_beside_that_of_an_answer() -> None:
    second, plan = second_turn(PageReuse.PROMPTS)
    run(plan)
    plan.drop(second)
    third = Ticket(2, [*second.tokens, *range(9)], 100)
    plan.submit(third)
    (work,) = run(plan).work
    assert work.begin == 64  # not 32: the history was computed as a prompt meanwhile


def test_pages_evicted_in_any_order_leave_no_entry_in_the_index() -> None:
    second, plan = second_turn(PageReuse.PROMPTS)
    run(plan)
    plan.drop(second)
    assert plan.ledger.allocate("other", [], 16, 16) is not None
    assert plan.ledger.adopt(second.tokens, 64, None) == ([], b"")


def test_the_queue_is_bounded_by_count_and_by_prompt_tokens() -> None:
    plan = planner(max_waiting=2, max_waiting_tokens=50)
    plan.submit(ticket(0, 60))  # alone it may be of any length
    with pytest.raises(ResourceExhausted, match=r"60 prompt tokens are waiting, with 5 more.*the 50 that"):
        plan.submit(ticket(1, 5))
    plan = planner(max_waiting=2, max_waiting_tokens=50)
    plan.submit(ticket(0, 5))
    plan.submit(ticket(1, 5))
    with pytest.raises(ResourceExhausted, match=r"2 requests are waiting, with 1 more .* exceed the 2"):
        plan.submit(ticket(2, 5))


def test_drafts_take_rows_and_pages_that_nobody_else_needs() -> None:
    plan = planner(pages=8, answer_rows=16)
    for number in range(2):
        plan.submit(ticket(number, PAGE_TOKENS - 2, answer=40))
        run(plan)
    run(plan)
    plan.ledger.allocate("another", [], plan.ledger.available - 1, 0)
    for each in plan.running:
        each.drafts = tuple(range(20))
    step = plan.plan()
    assert [work.drafts for work in step.work] == [tuple(range(15)), ()]  # the other's page is full, and none is left
    assert not step.preempted


def test_drafts_never_reach_beyond_the_answer() -> None:
    plan = planner(answer_rows=16)
    plan.submit(ticket(0, 5, answer=4))
    run(plan)
    plan.running[0].drafts = (7,) * 9
    assert plan.plan().work[0].drafts == (7, 7)  # the answer has one token, and the last one needs no row


def test_pages_hold_accepted_drafts_only_when_they_are_published() -> None:
    plan = planner(answer_rows=16)
    plan.submit(ticket(0, PAGE_TOKENS - 3, answer=40))
    run(plan)
    first = plan.running[0]
    first.drafts = (50, 51, 52, 53, 54)
    work = plan.plan().work[0]
    plan.complete([work])
    for token in (50, 60):  # the second draft is rejected
        first.append(token)
        if token == 50:
            plan.complete([TicketWork(first, work.end, work.end + 1, in_prompt=False)])
    assert first.computed == PAGE_TOKENS - 1
    assert plan.ledger.adopt(first.tokens, len(first.tokens), None) == ([], b"")
    run(plan)
    assert plan.ledger.adopt(first.tokens, PAGE_TOKENS, None)[0] == first.pages[:1]


PREFILL_ROWS = 32
MOST_PROMPT = 90


class PlannerMachine(RuleBasedStateMachine):
    """Requests come, go, pause and run out of pages; whatever happens, the ledger adds up and all requests end.

    The limits are drawn as routers set them (`StepSetup.make`): prompts of several requests in a group, rows of an
    answer that are replayed together, requests that take nothing over because their prompts are scored. As there, a
    prompt is reported as complete some steps after it was first planned, and a pass may fail: then nothing is reported.
    """

    @initialize(
        pages=st.integers(6, 20),
        max_running=st.integers(1, 5),
        answer_rows=st.sampled_from([1, 2, 16]),
        max_prompt=st.sampled_from([PREFILL_ROWS, MOST_PROMPT]),
    )
    def begin(self, pages: int, max_running: int, answer_rows: int, max_prompt: int) -> None:
        self.group_rows = max(2 * PREFILL_ROWS, max_prompt)
        self.plan = planner(
            pages=pages, max_running=max_running, max_waiting=5, answer_rows=answer_rows, group_rows=self.group_rows
        )
        self.tickets: list[Ticket] = []
        self.count = 0
        self.together: dict[Ticket, frozenset[Ticket]] = {}  # the prompts that began with each one

    @rule(
        prompt=st.integers(1, MOST_PROMPT),
        answer=st.integers(1, 60),
        shared=st.booleans(),
        reuse=st.sampled_from(PageReuse),
        adopts_any=st.booleans(),
    )
    def submit(self, prompt: int, answer: int, shared: bool, reuse: PageReuse, adopts_any: bool) -> None:
        self.count += 1
        new = ticket(self.count, prompt, answer, first=7 if shared else None)
        new.reuse, new.adopts_any = reuse, adopts_any
        try:
            self.plan.submit(new)
        except ResourceExhausted:
            assert len(self.plan.waiting) >= 5  # preempted requests wait beyond the limit
        else:
            self.tickets.append(new)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.tickets))
        self.tickets.remove(gone)
        self.plan.drop(gone)
        self.plan.drop(gone)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def pause_or_go_on(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.tickets))
        chosen.paused = not chosen.paused

    @rule(
        steps=st.integers(1, 20),
        unfinished=st.integers(0, 3),
        failed=st.booleans(),
        drafts=st.integers(0, 20),
        accepted=st.integers(0, 20),
    )
    def compute(self, steps: int, unfinished: int, failed: bool, drafts: int = 0, accepted: int = 0) -> None:
        """Computes steps; prompts are reported in every step but the first `unfinished`, a failed pass never.

        All answers have drafts, of which some are accepted.
        """
        for number in range(steps):
            marks = {each: bytes(each.alone) for each in self.tickets if each.admitted}
            for each in self.plan.running:
                each.drafts = (-1 - each.number,) * drafts
            step = self.plan.plan()
            self.check(step)
            for each, mark in marks.items():
                assert bytes(each.alone).startswith(mark)
            done = [work for work in step.work if not work.in_prompt or number >= unfinished]
            if failed and number == 0:
                done = []
            self.plan.complete(done)
            for work in done:
                if work.completes:
                    work.ticket.append(-1 - work.ticket.number)
                for begin in range(work.end, work.end + min(accepted, len(work.drafts))):
                    self.plan.complete([TicketWork(work.ticket, begin, begin + 1, in_prompt=False)])
                    work.ticket.append(-1 - work.ticket.number)
            for each in [each for each in self.tickets if len(each.tokens) >= each.most_tokens]:
                self.tickets.remove(each)
                self.plan.drop(each)

    def check(self, step: Step) -> None:
        """Checks everything that a step promises."""
        assert len({work.ticket for work in step.work}) == len(step.work)
        for work in step.work:
            assert not work.ticket.paused
            assert work.ticket not in step.preempted
            assert work.ticket in self.plan.running
            assert work.begin == work.ticket.computed
            assert pages_of(work.end + len(work.drafts)) <= len(work.ticket.pages)
            assert not work.drafts or work.completes
            assert work.end + len(work.drafts) < work.ticket.most_tokens
            if not work.in_prompt:
                assert 1 <= work.rows <= self.plan.limits.answer_rows
            elif work.rows < FEWEST_ROWS:
                assert work.ticket.prompt_tokens < FEWEST_ROWS
        prompts = [work for work in step.work if work.in_prompt]
        groups = {work.ticket.group for work in prompts}
        assert len(groups) <= 1
        assert None not in groups
        if len(prompts) > 1:
            assert sum(work.rows for work in prompts) <= self.group_rows
        for each in step.preempted:
            # The youngest gives way, so the oldest always goes on; and one that gave way begins anew, with others.
            assert each.paused or all(older.paused or older.number < each.number for older in self.plan.running)
            self.together.pop(each, None)
            self.together = {other: began - {each} for other, began in self.together.items()}
        members = frozenset(work.ticket for work in prompts)
        for each in members:
            began = self.together.setdefault(each, members)
            # Nobody joins a group that has begun, and only those that paused, ended or gave way are missing from it.
            assert members <= began
            missing = began - members
            assert all(gone.paused or gone.group != each.group or gone not in self.plan.running for gone in missing)
        for work in step.work:
            if not work.in_prompt:
                self.together.pop(work.ticket, None)

    @invariant()
    def pages_add_up(self) -> None:
        if not hasattr(self, "plan"):
            return
        ledger, counts = self.plan.ledger, self.plan.ledger.counts()
        assert counts.used + counts.cached + counts.free == ledger.page_count
        assert counts.used == len({page for each in self.plan.running for page in each.pages})
        assert all(not each.pages and not each.computed for each in self.plan.waiting)

    def teardown(self) -> None:
        for each in getattr(self, "tickets", []):
            each.paused = False
        for _ in range(3000):
            if not getattr(self, "tickets", []):
                return
            self.compute(1, 0, failed=False)
        assert self.tickets == []
        assert self.plan.ledger.counts().used == 0


PlannerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestServing = PlannerMachine.TestCase


def test_adjacent_pages_are_given_to_a_sequence_as_long_as_there_are_any() -> None:
    ledger = PageLedger(12)
    first = ledger.allocate("first", [], 1, 4)
    second = ledger.allocate("second", [], 1, 4)
    assert first is not None
    assert second is not None
    for _ in range(3):
        first += ledger.allocate("first", first, 1, 1) or []
        second += ledger.allocate("second", second, 1, 1) or []
    assert first == list(range(first[0], first[0] + 4))
    assert second == list(range(second[0], second[0] + 4))
    assert ledger.allocate("third", [], 5, 5) is None
    assert ledger.available == 12 - 8


def test_cached_pages_are_evicted_least_recently_released_first_and_ends_before_beginnings() -> None:
    plan = planner(pages=4)
    early = ticket(0, 70, 1)
    plan.submit(early)
    run(plan)
    plan.drop(early)
    assert plan.ledger.counts().cached == 2
    taken = plan.ledger.allocate("other", [], 3, 3)
    assert taken is not None
    pages, _ = plan.ledger.adopt(early.tokens, 64, None)
    assert len(pages) == 1  # the second page of the prompt has gone, the first is still there
    assert PAGE_TOKENS == 32
