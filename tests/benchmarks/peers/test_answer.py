"""Times of an answer."""

from __future__ import annotations

import pytest

from benchmarks.peers.answer import Answer
from benchmarks.peers.job import ModelShape, job_of
from zipmoe.errors import CorruptData

TOGETHER = Answer(10.0, ((12.0, 12.5, 13.0),) * 2, ((1, 2, 3),) * 2)
STAGGERED = Answer(0.0, ((1.0, 2.0, 3.0, 3.5, 4.0), (2.5, 3.0, 3.5, 4.0, 5.0)), ((0,) * 5,) * 2)


def test_sequences_that_are_computed_together() -> None:
    assert TOGETHER.ttft_ms == 2000
    assert TOGETHER.tpot_ms == TOGETHER.step_ms == 500
    assert TOGETHER.decoded_tokens == 4
    assert TOGETHER.tokens_per_s == 2


def test_a_step_counts_only_when_nobody_is_prefilled() -> None:
    assert STAGGERED.ttft_ms == 1750
    assert STAGGERED.tpot_ms == pytest.approx((3 / 4 + 2.5 / 4) / 2 * 1e3)
    assert STAGGERED.step_ms == pytest.approx((1 / 2 + 2.5 / 4) / 2 * 1e3)
    assert STAGGERED.decoded_tokens == 3 + 4


def test_one_token_has_no_time_per_token() -> None:
    answer = Answer(0.0, ((1.0,),), ((5,),))
    assert answer.tpot_ms is None and answer.step_ms is None and answer.decoded_tokens == 0


def test_an_answer_that_lacks_a_token_is_refused() -> None:
    job = job_of(0, 100, ModelShape(2, 4, 3))
    TOGETHER.check(job)
    with pytest.raises(CorruptData, match="choices"):
        Answer(0.0, TOGETHER.times_s, ((1, 2), (1, 2, 3))).check(job)
