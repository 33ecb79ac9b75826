"""Draws jobs from recorded dialogues."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence

from zipmoe.errors import InvalidRequest
from zipmoe.loadgen.jobs import Job
from zipmoe.loadgen.lengths import Lengths
from zipmoe.loadgen.sharegpt import Dialogue


async def recorded_jobs(
    dialogues: Sequence[Dialogue],
    count: int,
    answers: Lengths | None,
    context_tokens: int,
    count_tokens: Callable[[str], Awaitable[int]],
    seed: int,
) -> list[Job]:
    """Draws jobs from dialogues in random order.

    A dialogue is drawn again only after all dialogues have been drawn.

    Args:
        dialogues: dialogues to draw from.
        count: number of jobs.
        answers: lengths of the answers; None for the recorded lengths.
        context_tokens: dialogues with a longer prompt plus answer are left out.
        count_tokens: counts the tokens of a text; called only for drawn dialogues.
        seed: equal seeds draw equal jobs.

    Raises:
        InvalidRequest: no dialogue fits.
    """
    source = random.Random(f"{seed} jobs")
    sizes: dict[int, tuple[int, int]] = {}
    jobs: list[Job] = []
    while len(jobs) < count:
        before = len(jobs)
        for which in source.sample(range(len(dialogues)), len(dialogues)):
            if which not in sizes:
                prompt, answer = dialogues[which]
                sizes[which] = await count_tokens(prompt), max(1, await count_tokens(answer))
            prompt_tokens, recorded_tokens = sizes[which]
            answer_tokens = recorded_tokens if answers is None else answers.draw(source)
            if prompt_tokens + answer_tokens <= context_tokens:
                jobs.append(Job(len(jobs), dialogues[which].prompt, answer_tokens))
                if len(jobs) == count:
                    return jobs
        if len(jobs) == before:
            raise InvalidRequest(f"none of the {len(dialogues)} dialogues fits a context of {context_tokens} tokens")
    return jobs
