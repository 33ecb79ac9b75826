from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.residency.schedules import requests_in
from zipmoe.errors import InvalidRequest
from zipmoe.residency.scheduler import BlockScheduler, FifoScheduler, make_scheduler
from zipmoe.residency.state import Residency
from zipmoe.residency.tasks import FetchRequest, TensorCosts
from zipmoe.simulation.timeline import simulate_schedule
from zipmoe.types import ExpertKey

ABSENT, E_ONLY, SM_ONLY, PACKED, FULL = Residency
#: The disk is the bottleneck: what is read is recovered and computed in no time.
SLOW_DISK = (TensorCosts(2, 6, 1, 4, 0.5, 0.75), TensorCosts(1, 3, 0.5, 4, 0.25, 0.375))

requests = st.lists(
    st.tuples(st.sampled_from(list(Residency)), st.sampled_from([FULL, PACKED]), st.integers(1, 300)), max_size=20
).map(lambda drawn: [FetchRequest(ExpertKey(3, index), *fields) for index, fields in enumerate(drawn)])


@given(requests=requests, workers=st.integers(1, 8), model=st.floats(0, 4), recover=st.floats(0, 30))
def test_every_request_is_ordered_once_and_what_reads_nothing_comes_first(
    requests: list[FetchRequest], workers: int, model: float, recover: float
) -> None:
    costs = (TensorCosts(2, 6, recover, 4, model, 2 * model, model / 9, model / 5),)
    ordered = BlockScheduler(costs, workers).order(requests)
    assert sorted(ordered) == sorted(requests)
    reads = [request.state not in (FULL, PACKED) for request in ordered]
    assert reads == sorted(reads)


def test_a_need_of_alike_experts_keeps_its_order() -> None:
    """Equal requests give no reason to deviate from what the model asked for first."""
    requests = requests_in(*[ABSENT] * 9)
    assert BlockScheduler(SLOW_DISK, 2).order(requests) == requests


def test_full_experts_come_before_those_that_are_recovered_first() -> None:
    requests = requests_in(PACKED, FULL, PACKED, FULL)
    assert [request.key.expert for request in BlockScheduler(SLOW_DISK, 2).order(requests)] == [1, 3, 0, 2]


def test_the_expert_with_the_most_tokens_is_read_first_when_products_take_long() -> None:
    costs = (TensorCosts(2, 6, 1, 4, 1.0, 1.0, 0.5, 0.5),)
    requests = [FetchRequest(ExpertKey(0, expert), ABSENT, PACKED, rows) for expert, rows in enumerate((1, 4, 2, 6))]
    assert [request.rows for request in BlockScheduler(costs, 1).order(requests)] == [6, 4, 2, 1]


def test_fifo_keeps_the_order_of_need() -> None:
    requests = requests_in(ABSENT, FULL, SM_ONLY, PACKED)
    assert FifoScheduler().order(requests) == requests


@given(requests=requests, workers=st.integers(1, 4))
def test_blocks_read_with_equal_channel_time_and_end_no_later_than_fifo_where_recovery_rules(
    requests: list[FetchRequest], workers: int
) -> None:
    """Products at no cost and slow recovery: the case that pairing is for."""
    costs = (TensorCosts(1, 3, 8.0 * workers, 4),)
    recovered = [request._replace(form=FULL) for request in requests]
    block = simulate_schedule(BlockScheduler(costs, workers).order(recovered), costs, workers)
    fifo = simulate_schedule(recovered, costs, workers)
    assert block.channel_s == fifo.channel_s
    assert block.fetched_s <= fifo.fetched_s


def test_schedulers_are_made_by_name() -> None:
    assert isinstance(make_scheduler("block", SLOW_DISK, 2), BlockScheduler)
    assert isinstance(make_scheduler("fifo", SLOW_DISK, 2), FifoScheduler)
    with pytest.raises(InvalidRequest, match="there is no scheduler 'lifo', only block and fifo"):
        make_scheduler("lifo", SLOW_DISK, 2)
    with pytest.raises(InvalidRequest, match="at least 1 worker, not 0"):
        make_scheduler("block", SLOW_DISK, 0)


def test_where_cores_are_shared_products_count_beside_longer_recoveries() -> None:
    """On cores of their own, workers are busy for 5 s with either; on shared ones the second takes a second longer."""
    costs = (TensorCosts(2, 8, 5, 4, 1.0, 1.0, 1.0, 1.0),)
    first, second = (FetchRequest(ExpertKey(0, expert), ABSENT, FULL, rows=1 + expert) for expert in range(2))
    assert BlockScheduler(costs, 1).order([first, second]) == [first, second]
    assert BlockScheduler(costs, 1, shares_cores=True).order([first, second]) == [second, first]
