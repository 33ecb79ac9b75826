"""Creates the jobs and the arrival times of a run, the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from zipmoe.loadgen.lengths import Lengths


@dataclass(frozen=True)
class Job:
    """One request to send.

    Attributes:
        index: from 0, in the order of sending.
        prompt: a text or token ids.
        answer_tokens: exact length of the answer, which ends neither earlier nor later.
    """

    index: int
    prompt: str | tuple[int, ...]
    answer_tokens: int


def random_jobs(
    count: int, prompt_tokens: Lengths, answer_tokens: Lengths, vocabulary_size: int, seed: int
) -> list[Job]:
    """Creates jobs with random token ids, so that no two prompts share a prefix that a cache could reuse.

    Args:
        count: number of jobs.
        prompt_tokens: lengths of the prompts.
        answer_tokens: lengths of the answers.
        vocabulary_size: exclusive upper bound of the token ids.
        seed: equal seeds create equal jobs.
    """
    source = random.Random(f"{seed} jobs")
    jobs = []
    for index in range(count):
        length = prompt_tokens.draw(source)
        prompt = tuple(source.randrange(vocabulary_size) for _ in range(length))
        jobs.append(Job(index, prompt, answer_tokens.draw(source)))
    return jobs


def poisson_arrivals_s(count: int, rate_per_s: float, seed: int) -> list[float]:
    """Draws arrival times of a Poisson process, ascending from 0.

    Args:
        count: number of arrivals.
        rate_per_s: mean arrivals a second, > 0.
        seed: equal seeds give equal times; another rate only scales the times.
    """
    source = random.Random(f"{seed} arrivals")
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += source.expovariate(1.0) / rate_per_s
    return times
