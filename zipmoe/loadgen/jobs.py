"""What is asked: requests with their prompts and the lengths of their answers, the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from zipmoe.loadgen.lengths import Lengths


@dataclass(frozen=True)
class Job:
    """One request.

    Attributes:
        index: from 0, in the order of sending.
        prompt: a text or token ids.
        answer_tokens: how long the answer is made: it neither ends before nor goes on.
    """

    index: int
    prompt: str | tuple[int, ...]
    answer_tokens: int


def random_jobs(
    count: int, prompt_tokens: Lengths, answer_tokens: Lengths, vocabulary_size: int, seed: int
) -> list[Job]:
    """Makes requests with random token ids: no two prompts share a prefix that a cache could reuse.

    Args:
        count: how many.
        prompt_tokens: lengths of the prompts.
        answer_tokens: lengths of the answers.
        vocabulary_size: ids are below this.
        seed: the same one makes the same requests.
    """
    source = random.Random(f"{seed} jobs")
    jobs = []
    for index in range(count):
        length = prompt_tokens.draw(source)
        prompt = tuple(source.randrange(vocabulary_size) for _ in range(length))
        jobs.append(Job(index, prompt, answer_tokens.draw(source)))
    return jobs


def poisson_arrivals_s(count: int, rate_per_s: float, seed: int) -> list[float]:
    """Arrival times of a Poisson process, ascending from 0.

    Args:
        count: how many.
        rate_per_s: mean arrivals a second, > 0.
        seed: the same one gives the same times; those of another rate are the same but for their scale.
    """
    source = random.Random(f"{seed} arrivals")
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += source.expovariate(1.0) / rate_per_s
    return times
