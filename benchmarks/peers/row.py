"""What is reported: one row a case, medians over rounds with their spread, and ratios of systems round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.peers.limits import Floor, belady_bytes_per_token, floors, step_limit_ms, ttft_limit_ms
from benchmarks.peers.record import PeerCase, Record
from benchmarks.peers.work import PeerWork


@dataclass(frozen=True)
class RatioSpread:
    """Median of the rounds, each of which counts with the median of its jobs; the least and the most of them."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.most:.2f})"


@dataclass(frozen=True)
class PeerRow:
    """One case; None where no job has given the figure."""

    case: PeerCase
    problem: str
    rounds: int
    figures: Mapping[str, RatioSpread | None]
    peak_bytes: int
    held_bytes: int
    limit_bytes: int
    choices_equal: float

    @property
    def tokens_match(self) -> bool:
        """Whether every greedy choice of every job was stock's."""
        return not self.problem and self.choices_equal == 1

    def __getitem__(self, name: str) -> float | None:
        spread = self.figures.get(name)
        return None if spread is None else spread.median

    def as_json(self) -> dict[str, Any]:
        """The row as the benchmark's JSON has it."""
        case = self.case
        return {
            "system": case.system,
            "model": case.model,
            "budget_gib": self.limit_bytes / (1 << 30),
            "budget": case.budget,
            "batch": case.batch,
            "prompt_tokens": case.prompt_tokens,
            "rounds": self.rounds,
            **{name: self[name] for name in FIGURES},
            "peak_bytes": self.peak_bytes,
            "held_bytes": self.held_bytes,
            "tokens_match": self.tokens_match,
            "choices_equal": self.choices_equal,
            "problem": self.problem,
            "spread": {name: [each.least, each.most] for name, each in self.figures.items() if each is not None},
        }


FIGURES: tuple[str, ...] = (
    "ttft_ms", "tpot_ms", "step_ms", "tokens_per_s", "bytes_per_token", "prefill_bytes", "disk_gbps", "limit_ms",
    "vs_limit", "ttft_limit_ms", "ttft_vs_limit", "belady_bytes_per_token",
)  # fmt: skip


def rows_of(
    records: Iterable[Record], works: Mapping[str, PeerWork], limit_bytes: Callable[[PeerCase], int]
) -> list[PeerRow]:
    """Makes the rows, in the order in which cases first came."""
    every = list(records)
    known = floors(every)
    by_case: dict[PeerCase, list[Record]] = {}
    for record in every:
        by_case.setdefault(record.run.case, []).append(record)
    return [
        _row(case, each, works[case.model], known.get((case.model, case.batch, case.prompt_tokens)), limit_bytes(case))
        for case, each in by_case.items()
    ]


def _row(case: PeerCase, records: Sequence[Record], work: PeerWork, floor: Floor | None, limit_bytes: int) -> PeerRow:
    good = [record for record in records if not record.problem]
    by_round: dict[int, list[Record]] = {}
    for record in good:
        by_round.setdefault(record.run.round, []).append(record)
    found: dict[str, list[dict[str, float | None]]] = {}
    figures: dict[str, RatioSpread | None] = {}
    for index, each in by_round.items():
        belady = belady_bytes_per_token(each, limit_bytes, work)
        found[str(index)] = [{**_figures(record, work, floor), "belady_bytes_per_token": belady} for record in each]
    for name in FIGURES:
        figures[name] = spread([[job[name] for job in jobs] for jobs in found.values()])
    return PeerRow(
        case,
        next((record.problem for record in records if record.problem), ""),
        len(by_round),
        figures,
        max((record.peak_bytes for record in good), default=0),
        max((record.held_bytes for record in good), default=0),
        limit_bytes,
        min((record.choices_equal for record in good), default=0.0),
    )


def _figures(record: Record, work: PeerWork, floor: Floor | None) -> dict[str, float | None]:
    limit_ms, first_ms = step_limit_ms(record, floor), ttft_limit_ms(record, floor, work)
    return {
        "ttft_ms": record.ttft_ms,
        "tpot_ms": record.tpot_ms,
        "step_ms": record.step_ms,
        "tokens_per_s": record.tokens_per_s,
        "bytes_per_token": record.bytes_per_token if record.decoded_tokens else None,
        "prefill_bytes": record.prefill_bytes,
        "disk_gbps": record.disk_gbps,
        "limit_ms": limit_ms,
        "vs_limit": record.step_ms / limit_ms if limit_ms and record.step_ms is not None else None,
        "ttft_limit_ms": first_ms,
        "ttft_vs_limit": record.ttft_ms / first_ms if first_ms else None,
    }


def spread(rounds: Sequence[Sequence[float | None]]) -> RatioSpread | None:
    """Median over rounds of the medians of their jobs; None if there is no value."""
    medians = [median(there) for jobs in rounds if (there := [value for value in jobs if value is not None])]
    return RatioSpread(median(medians), min(medians), max(medians)) if medians else None


def ratios(
    records: Iterable[Record], system: str, figure: Callable[[Record], float | None]
) -> dict[PeerCase, RatioSpread]:
    """A figure of one system over that of each other in the same case, round by round.

    Returns:
        By the other system's case.
    """
    by_case: dict[PeerCase, dict[int, list[float]]] = {}
    for record in records:
        value = None if record.problem else figure(record)
        if value is not None:
            by_case.setdefault(record.run.case, {}).setdefault(record.run.round, []).append(value)
    found = {}
    for case, rounds in by_case.items():
        own = by_case.get(case._replace(system=system), {})
        if case.system != system and (shared := sorted(own.keys() & rounds.keys())):
            quotients = [[median(own[index]) / median(rounds[index])] for index in shared]
            result = spread(quotients)
            assert result is not None
            found[case] = result
    return found
