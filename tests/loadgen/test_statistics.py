"""Figures of a run, from samples that are known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipmoe.loadgen.sample import RequestSample
from zipmoe.loadgen.statistics import Slo, Spread, percentile, summarise


def sample(
    index: int = 0, due: float = 0.0, times: tuple[float, ...] = (1.0, 1.5, 2.5), **more: object
) -> RequestSample:
    end = times[-1] if times else due
    return RequestSample(index, due, times, **{"end_s": end, "prompt_tokens": 10, **more})  # type: ignore[arg-type]


def test_latency_counts_from_when_a_request_was_due() -> None:
    one = sample(due=0.25, times=(1.0, 1.5, 2.5), end_s=2.75)
    assert (one.first_token_s, one.gaps_s, one.duration_s) == (0.75, (0.5, 1.0), 2.5)
    assert sample(times=()).first_token_s is None


@pytest.mark.parametrize(
    ("count", "share", "rank"),
    [
        (1, 0.5, 1),
        (2, 0.5, 1),
        (3, 0.5, 2),
        (100, 0.5, 50),
        (100, 0.9, 90),
        (100, 0.99, 99),
        (10, 0.99, 10),
        (100, 0.07, 7),
    ],
)
def test_a_percentile_is_the_value_of_the_nearest_rank(count: int, share: float, rank: int) -> None:
    assert percentile([float(value) for value in range(1, count + 1)], share) == rank


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.001, 1.0))
def test_at_least_the_share_does_not_exceed_a_percentile_and_no_smaller_value_does(
    values: list[float], share: float
) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert sum(value <= found for value in ordered) >= share * len(ordered) - 1e-6
    assert sum(value < found for value in ordered) < share * len(ordered) + 1e-6


def test_a_spread_of_nothing_is_none() -> None:
    assert Spread.of([]) is None
    assert Spread.of([2.0, 1.0, 6.0]) == Spread(3, 3.0, 2.0, 6.0, 6.0, 6.0)


def test_a_summary_counts_answers_tokens_and_errors() -> None:
    samples = [
        sample(0, 0.0, (1.0, 1.5, 2.5), expert_hits=3, expert_misses=1, expert_read_bytes=300),
        sample(1, 1.0, (3.0, 4.0), error="CorruptData", end_s=4.0),
        sample(2, 2.0, (), error="ResourceExhausted", end_s=2.0),
        sample(3, 2.0, (), error="ResourceExhausted", end_s=2.0),
        sample(4, 3.0, (4.0,), end_s=5.0),
    ]
    summary = summarise(samples, Slo())
    assert (summary.requests, summary.completed) == (5, 2)
    assert summary.errors == {"CorruptData": 1, "ResourceExhausted": 2}
    assert (summary.seconds, summary.prompt_tokens, summary.generated_tokens) == (5.0, 20, 6)
    assert (summary.requests_per_s, summary.tokens_per_s) == (2 / 5, 6 / 5)
    assert summary.first_token_s == Spread.of([1.0, 1.0])
    assert summary.inter_token_s == Spread.of([0.5, 1.0]), "of complete answers only"
    assert summary.request_s == Spread.of([2.5, 2.0])
    assert (summary.hit_share, summary.read_bytes_per_token) == (0.75, 75.0)
    assert (summary.goodput_per_s, summary.good_share) == (None, None), "nothing was asked for"


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (Slo(first_token_s=1.0), 2),
        (Slo(first_token_s=0.99), 0),
        (Slo(inter_token_s=0.75), 2),
        (Slo(inter_token_s=0.74), 1),
        (Slo(first_token_s=1.0, inter_token_s=0.74), 1),
        (Slo(first_token_s=math.inf), 2),
    ],
)
def test_goodput_counts_complete_answers_that_keep_every_limit(slo: Slo, good: int) -> None:
    samples = [sample(0), sample(1, 0.0, (1.0,), end_s=4.0), sample(2, 0.0, (0.1, 0.2), error="CorruptData")]
    summary = summarise(samples, slo)
    assert (summary.goodput_per_s, summary.good_share) == (good / 4.0, good / 3)


def test_a_run_without_answers_has_no_latencies() -> None:
    summary = summarise([sample(times=(), error="Unavailable")], Slo(first_token_s=1.0))
    assert (summary.first_token_s, summary.tokens_per_s, summary.good_share) == (None, 0.0, 0.0)
    assert summarise([], Slo(first_token_s=1.0)).requests == 0


def test_the_time_of_a_run_begins_with_its_first_request() -> None:
    assert summarise([sample(due=10.0, times=(11.0,), end_s=12.0)], Slo()).seconds == 2.0
