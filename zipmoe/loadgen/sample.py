"""What one request took."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True)
class RequestSample:
    """One request as its client saw it. Times in seconds, of one clock that began with the run.

    Attributes:
        index: of the job.
        due_s: when it should have been sent. Latency counts from here: a late client must not flatter the server.
        token_times_s: when each token came, ascending.
        end_s: when the answer, or the error, was complete.
        prompt_tokens: length of the prompt, 0 if nobody said.
        expert_hits: expert activations served from memory, as far as the server tells.
        expert_misses: those that had to read.
        expert_read_bytes: read for it.
        error: the error's class; None for a complete answer.
    """

    index: int
    due_s: float
    token_times_s: tuple[float, ...]
    end_s: float
    prompt_tokens: int = 0
    expert_hits: int = 0
    expert_misses: int = 0
    expert_read_bytes: int = 0
    error: str | None = None

    @property
    def first_token_s(self) -> float | None:
        """Seconds to the first token; None if none came."""
        return self.token_times_s[0] - self.due_s if self.token_times_s else None

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Seconds between each two tokens."""
        return tuple(after - before for before, after in itertools.pairwise(self.token_times_s))

    @property
    def duration_s(self) -> float:
        """Seconds to the end."""
        return self.end_s - self.due_s
