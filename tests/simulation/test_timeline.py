from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.residency.schedules import costs, requests_in
from zipmoe.residency.state import Residency
from zipmoe.residency.tasks import Handover, TensorCosts, WorkKind, tasks_of
from zipmoe.simulation.timeline import TaskSpan, Timeline, simulate_schedule
from zipmoe.types import ExpertKey

ABSENT, E_ONLY, SM_ONLY, PACKED, FULL = Residency
EXPERT = (TensorCosts(2, 6, 4, 2, 1, 2), TensorCosts(1, 3, 2, 2, 0.5, 1))


def on(timeline: Timeline, work: WorkKind) -> list[TaskSpan]:
    return sorted((span for span in timeline.spans if span.task.work is work), key=lambda span: span.begin_s)


@given(
    expert=costs(max_tensors=2, max_chunks=3),
    states=st.lists(st.sampled_from(list(Residency)), max_size=6),
    workers=st.integers(1, 3),
    handover=st.sampled_from(list(Handover)),
    form=st.sampled_from([FULL, PACKED]),
)
def test_each_task_runs_once_after_what_it_waits_for_on_a_free_lane(
    expert: tuple[TensorCosts, ...], states: list[Residency], workers: int, handover: Handover, form: Residency
) -> None:
    requests = requests_in(*states, form=form)
    timeline = simulate_schedule(requests, expert, workers, handover=handover)
    ended_s = {(span.key, span.task): span.end_s for span in timeline.spans}
    assert len(ended_s) == len(timeline.spans)
    for request in requests:
        tasks = tasks_of(request.state, form, 1, expert, handover).tasks
        spans = [next(s for s in timeline.spans if s.key == request.key and s.task is task) for task in tasks]
        for span in spans:
            assert span.end_s == span.begin_s + span.task.seconds
            assert all(spans[index].end_s <= span.begin_s for index in span.task.after)
    for work, machines in ((WorkKind.READ, 1), (WorkKind.RECOVERY, workers), (WorkKind.PRODUCT, 1)):
        spans = on(timeline, work)
        for span in spans:
            assert sum(other.begin_s <= span.begin_s < other.end_s for other in spans) <= machines
    reads = on(timeline, WorkKind.READ)
    assert all(before.end_s == after.begin_s for before, after in pairwise(reads))


def test_nothing_to_do_takes_no_time() -> None:
    assert simulate_schedule([], EXPERT, 2) == Timeline((), 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("handover", "first_recovery_s"), [(Handover.CHUNK, 9), (Handover.TENSOR, 9), (Handover.EXPERT, 12)]
)
def test_chunks_are_handed_over_alone_or_with_their_tensor_or_with_their_expert(
    handover: Handover, first_recovery_s: float
) -> None:
    """On disk both tensors' E-chunks (2 + 1 s) come before the SM-chunk of the first (6 s) and of the second (3 s)."""
    timeline = simulate_schedule(requests_in(ABSENT), EXPERT, 1, handover=handover)
    assert on(timeline, WorkKind.RECOVERY)[0].begin_s == first_recovery_s


def test_e_chunks_of_an_expert_with_its_sm_chunks_are_recovered_as_they_arrive() -> None:
    alone = simulate_schedule(requests_in(SM_ONLY), EXPERT, 1, handover=Handover.CHUNK)
    together = simulate_schedule(requests_in(SM_ONLY), EXPERT, 1, handover=Handover.TENSOR)
    assert (on(alone, WorkKind.RECOVERY)[0].begin_s, on(together, WorkKind.RECOVERY)[0].begin_s) == (1, 2)


def test_a_channel_that_is_busy_with_something_else_begins_later() -> None:
    timeline = simulate_schedule(requests_in(FULL, SM_ONLY), EXPERT, 1, channel_s=5.0)
    assert on(timeline, WorkKind.READ)[0].begin_s == 5.0
    assert timeline.channel_s == 8.0
    assert max(span.end_s for span in on(timeline, WorkKind.PRODUCT) if span.key == ExpertKey(0, 0)) == 1.5
    assert timeline.stall_s == timeline.ended_s - 3.0


def test_workers_prefer_the_more_urgent_of_what_is_ready() -> None:
    spans = on(simulate_schedule(requests_in(PACKED, PACKED), EXPERT, 1), WorkKind.RECOVERY)
    assert [span.key.expert for span in spans] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_recoveries_and_products_take_turns_where_they_share_cores() -> None:
    """6 s of recoveries on two workers and 1.5 s of products, for each of two experts: no second is used twice."""
    own = simulate_schedule(requests_in(PACKED, PACKED), EXPERT, 2)
    shared = simulate_schedule(requests_in(PACKED, PACKED), EXPERT, 2, shares_cores=True)
    assert shared.ended_s == 2 * (6 / 2 + 1.5)
    assert shared.stall_s == 2 * 6 / 2
    assert own.ended_s < shared.ended_s
