"""The jobs that all systems are given."""

from __future__ import annotations

import pytest

from benchmarks.peers.job import FIRST_TOKEN, ModelShape, PeerJob, job_of


def test_a_job_travels_as_a_line() -> None:
    job = job_of(2, 500, ModelShape(3, 5, 4))
    assert PeerJob.parse(job.line()) == job
    assert job.shape == ModelShape(3, 5, 4)


def test_a_line_with_too_few_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens for 2 sequences of 2 and 1"):
        PeerJob.parse("2 2 1 7 7 7 7 7")


def test_a_smaller_batch_and_fewer_tokens_are_the_beginning_of_a_larger_job() -> None:
    small, large = job_of(0, 500, ModelShape(2, 5, 4)), job_of(0, 500, ModelShape(4, 5, 9))
    for one, other in zip(small.sequences, large.sequences, strict=False):
        assert one.prompt == other.prompt
        assert one.forced == other.forced[:4]


def test_sequences_of_a_job_differ_and_have_no_special_token() -> None:
    sequences = [each for index in range(3) for each in job_of(index, 500, ModelShape(4, 8, 8)).sequences]
    assert len(set(sequences)) == 12
    assert all(FIRST_TOKEN <= token < 500 for each in sequences for token in (*each.prompt, *each.forced))
