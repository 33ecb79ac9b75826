"""What a system made of a job, and when."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from benchmarks.peers.job import PeerJob
from zipmoe.errors import CorruptData


@dataclass(frozen=True)
class Answer:
    """One job's outcome; a row for each sequence. Times are of CLOCK_MONOTONIC, in seconds.

    Attributes:
        begin_s: when the job was handed over.
        times_s: when each token was there.
        choices: the tokens that the system itself would have taken.
    """

    begin_s: float
    times_s: tuple[tuple[float, ...], ...]
    choices: tuple[tuple[int, ...], ...]

    def check(self, job: PeerJob) -> None:
        """Holds it against the job; raises CorruptData where sequences or tokens are missing."""
        shape = job.shape
        for what, rows in (("times", self.times_s), ("choices", self.choices)):
            if len(rows) != shape.batch or any(len(row) != shape.new_tokens for row in rows):
                raise CorruptData(f"an answer has {what} of {[len(row) for row in rows]} tokens, not {shape}")

    @property
    def all_began_s(self) -> float:
        """When the last sequence had its first token: from here on all are decoded."""
        return max(row[0] for row in self.times_s)

    @property
    def ttft_ms(self) -> float:
        """Mean time to a sequence's first token."""
        return fmean(row[0] - self.begin_s for row in self.times_s) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Mean time between two tokens of a sequence; None for one token."""
        if len(self.times_s[0]) < 2:
            return None
        return fmean((row[-1] - row[0]) / (len(row) - 1) for row in self.times_s) * 1e3

    @property
    def step_ms(self) -> float | None:
        """The same of tokens that came after all sequences had begun, when nobody was prefilled; None if none did."""
        gaps = []
        for row in self.times_s:
            late = [time_s for time_s in row if time_s >= self.all_began_s]
            if len(late) > 1:
                gaps.append((late[-1] - late[0]) / (len(late) - 1))
        return fmean(gaps) * 1e3 if gaps else None

    @property
    def decoded_tokens(self) -> int:
        """Tokens of all sequences that came after all had begun."""
        return sum(sum(time_s > self.all_began_s for time_s in row) for row in self.times_s)

    @property
    def tokens_per_s(self) -> float:
        """All tokens over the time from the hand-over to the last one."""
        count = sum(len(row) for row in self.times_s)
        return count / (max(row[-1] for row in self.times_s) - self.begin_s)
