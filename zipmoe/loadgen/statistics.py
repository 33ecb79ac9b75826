"""Computes the figures of a run from the samples of the requests. Pure functions without input or output."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zipmoe.loadgen.sample import RequestSample


@dataclass(frozen=True)
class Spread:
    """Count, mean, maximum and percentiles of values. Percentiles are nearest-rank, so each is a value."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Computes the spread of values; None if there are no values."""
        ordered = sorted(values)
        if not ordered:
            return None
        mean = math.fsum(ordered) / len(ordered)
        p50, p90, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
        return cls(len(ordered), mean, p50, p90, p99, ordered[-1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns the least value that at least `share` of the values do not exceed (nearest rank).

    Args:
        ordered: values in ascending order, at least one.
        share: share of the values, in (0, 1].
    """
    # Rounded first: 0.07 * 100 is 7.000000000000001 in binary and would select the eighth value.
    rank = math.ceil(round(share * len(ordered), 9))
    return ordered[max(rank, 1) - 1]


@dataclass(frozen=True)
class Slo:
    """Limits that an answer has to meet to count as good; None for no limit.

    Attributes:
        first_token_s: the longest time to the first token.
        inter_token_s: the longest mean time between tokens.
    """

    first_token_s: float | None = None
    inter_token_s: float | None = None

    @property
    def is_given(self) -> bool:
        """Whether there is a limit."""
        return self.first_token_s is not None or self.inter_token_s is not None

    def met_by(self, sample: RequestSample) -> bool:
        """Whether an answer is complete and fast enough."""
        first_s, gaps = sample.first_token_s, sample.gaps_s
        if sample.error is not None or first_s is None:
            return False
        mean_gap_s = math.fsum(gaps) / len(gaps) if gaps else 0.0
        return (self.first_token_s is None or first_s <= self.first_token_s) and (
            self.inter_token_s is None or mean_gap_s <= self.inter_token_s
        )


@dataclass(frozen=True)
class Summary:
    """The figures of a run. Latencies are those of complete answers; throughput counts every token that came.

    Attributes:
        requests: number of sent requests.
        completed: number of requests with a complete answer.
        errors: number of failed requests by class of error.
        seconds: time from the first due time to the last end.
        prompt_tokens: prompt tokens of complete answers.
        generated_tokens: tokens of all answers, complete or not.
        first_token_s: from the due time to the first token.
        inter_token_s: between successive tokens, over all gaps of complete answers.
        request_s: from the due time to the end.
        requests_per_s: complete answers a second.
        tokens_per_s: generated tokens a second.
        goodput_per_s: answers a second that met the SLO; None without an SLO.
        good_share: share of all sent requests that met the SLO; None without an SLO.
        hit_share: share of expert activations served from memory; None if the server reports none.
        read_bytes_per_token: bytes of experts read from disk for each token; None if the server reports none.
    """

    requests: int
    completed: int
    errors: dict[str, int]
    seconds: float
    prompt_tokens: int
    generated_tokens: int
    first_token_s: Spread | None
    inter_token_s: Spread | None
    request_s: Spread | None
    requests_per_s: float
    tokens_per_s: float
    goodput_per_s: float | None
    good_share: float | None
    hit_share: float | None
    read_bytes_per_token: float | None


def summarise(samples: Sequence[RequestSample], slo: Slo) -> Summary:
    """Computes the figures of a run."""
    complete = [sample for sample in samples if sample.error is None]
    first_s = [sample.first_token_s for sample in complete if sample.first_token_s is not None]
    begin_s = min((sample.due_s for sample in samples), default=0.0)
    seconds = max((sample.end_s for sample in samples), default=0.0) - begin_s
    tokens = sum(len(sample.token_times_s) for sample in samples)
    good = sum(slo.met_by(sample) for sample in samples)
    hits, misses = sum(sample.expert_hits for sample in complete), sum(sample.expert_misses for sample in complete)
    complete_tokens = sum(len(sample.token_times_s) for sample in complete)
    read_bytes = sum(sample.expert_read_bytes for sample in complete)
    return Summary(
        requests=len(samples),
        completed=len(complete),
        errors=dict(sorted(Counter(sample.error for sample in samples if sample.error is not None).items())),
        seconds=seconds,
        prompt_tokens=sum(sample.prompt_tokens for sample in complete),
        generated_tokens=tokens,
        first_token_s=Spread.of(first_s),
        inter_token_s=Spread.of(gap for sample in complete for gap in sample.gaps_s),
        request_s=Spread.of(sample.duration_s for sample in complete),
        requests_per_s=_rate(len(complete), seconds),
        tokens_per_s=_rate(tokens, seconds),
        goodput_per_s=_rate(good, seconds) if slo.is_given else None,
        good_share=good / len(samples) if slo.is_given and samples else None,
        hit_share=hits / (hits + misses) if hits + misses else None,
        read_bytes_per_token=read_bytes / complete_tokens if hits + misses and complete_tokens else None,
    )


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
