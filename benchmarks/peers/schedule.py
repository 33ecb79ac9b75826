"""Which runs there are, in which order, and how long they will take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.peers.job import ModelShape
from benchmarks.peers.record import RESIDENT, PeerCase, PeerRun, Record
from benchmarks.peers.systems.system import FLOOR

TTFT_TOKENS = 2
"""Tokens after a prompt that is there for its time to first token."""


@dataclass(frozen=True)
class Selection:
    """What was asked for.

    Attributes:
        models, systems, budgets, batches: of which every combination is a case.
        prompt_tokens: the first is for decoding, in all batches; others only for their time to first token, alone.
        new_tokens: after the first kind of prompt.
        rounds: runs of each case.
        jobs: of each run.
    """

    models: Sequence[str]
    systems: Sequence[str]
    budgets: Sequence[str]
    batches: Sequence[int]
    prompt_tokens: Sequence[int]
    new_tokens: int
    rounds: int
    jobs: int

    def shapes(self) -> list[ModelShape]:
        """Of the jobs."""
        decoding = [ModelShape(batch, self.prompt_tokens[0], self.new_tokens) for batch in self.batches]
        return decoding + [ModelShape(1, length, TTFT_TOKENS) for length in self.prompt_tokens[1:]]

    def runs(self) -> list[PeerRun]:
        """All of them, round by round, in which the floor comes first, and systems take turns at coming next."""
        return [
            PeerRun(PeerCase(model, system, budget, shape.batch, shape.prompt_tokens, shape.new_tokens), index)
            for index in range(self.rounds)
            for model in self.models
            for shape in self.shapes()
            for budget in dict.fromkeys([RESIDENT, *self.budgets])
            for system in sorted(_rotated(self.systems, index), key=FLOOR.__ne__)
            if (budget == RESIDENT if system == FLOOR else budget in self.budgets)
        ]


def left_of(runs: Iterable[PeerRun], records: Iterable[Record], jobs: int) -> list[PeerRun]:
    """The runs of which not all jobs are recorded; one that ended in a problem is not done again."""
    done: dict[PeerRun, int] = {}
    for record in records:
        done[record.run] = max(done.get(record.run, 0), jobs if record.problem else record.index + 1)
    return [run for run in runs if done.get(run, 0) < jobs]


@dataclass(frozen=True)
class Pace:
    """Seconds of a system at 4 GiB and one sequence, on a machine with 2 cores and a disk of 1.8 GB/s."""

    start_s: float
    ttft_s: float
    tpot_s: float


PACES: Mapping[str, Pace] = {
    "zipmoe": Pace(20, 5, 0.2),
    "lru": Pace(15, 8, 0.33),
    "llama": Pace(6, 9, 2.0),
    "llama-madvise": Pace(6, 9, 0.55),
    "transformers": Pace(15, 15, 1.5),
    "accelerate": Pace(60, 13, 2.1),
    FLOOR: Pace(25, 5, 0.1),
}


def expected_s(run: PeerRun, jobs: int, records: Iterable[Record]) -> float:
    """How long a run will take: as it took before, else by `PACES`."""
    before: dict[int, list[float]] = {}
    for record in records:
        if record.run.case == run.case and not record.problem:
            before.setdefault(record.index, []).append(record.run_s)
    if jobs - 1 in before:
        return median(before[jobs - 1])
    pace, shape = PACES[run.case.system], run.case.shape
    grows = float(shape.batch**0.7)
    prefill_s = pace.ttft_s * max(1.0, shape.prompt_tokens * shape.batch / 256)
    return pace.start_s + jobs * (1 + prefill_s + shape.new_tokens * pace.tpot_s * grows)


def _rotated(systems: Sequence[str], count: int) -> list[str]:
    place = count % len(systems)
    return [*systems[place:], *systems[:place]]


def clock(seconds: float) -> str:
    """Writes a duration in hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"
