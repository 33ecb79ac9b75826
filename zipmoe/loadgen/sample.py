"""Times and expert counts of one request."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True)
class RequestSample:
    """A request as seen by the client. Times are in seconds since the start of the run.

    Attributes:
        index: index of the job.
        due_s: due time. Latency counts from the due time, so that a late client does not flatter the server.
        token_times_s: arrival time of each token, ascending.
        end_s: time when the answer, or the error, was complete.
        prompt_tokens: length of the prompt; 0 if the server does not report the length.
        expert_hits: expert activations served from memory; 0 if the server does not report hits.
        expert_misses: expert activations that had to read.
        expert_read_bytes: bytes of experts read for the request.
        error: class of the error; None for a complete answer.
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
        """Seconds from the due time to the first token; None without a token."""
        return self.token_times_s[0] - self.due_s if self.token_times_s else None

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Seconds between successive tokens."""
        return tuple(after - before for before, after in itertools.pairwise(self.token_times_s))

    @property
    def duration_s(self) -> float:
        """Seconds from the due time to the end."""
        return self.end_s - self.due_s
