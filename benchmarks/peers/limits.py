"""What no system can do better: the physical limit of a run, and Belady's bytes as the bound of its policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.peers.memory import kv_bytes
from benchmarks.peers.record import RESIDENT, PeerRun, Record
from benchmarks.peers.reference import Reference, Routed, job_references
from benchmarks.peers.systems.system import FLOOR, SYSTEMS, ZipMoe
from benchmarks.peers.work import PeerWork

Pass = tuple[int, frozenset[int]]
"""A pass through a layer: its ordinal, and the experts that it needs."""


@dataclass(frozen=True)
class Floor:
    """What computing alone takes, in milliseconds; None where it has not been measured."""

    ttft_ms: float | None
    step_ms: float | None


def floors(records: Iterable[Record]) -> dict[tuple[str, int, int], Floor]:
    """Medians of the floor's own runs, by model, batch and tokens of a prompt."""
    found: dict[tuple[str, int, int], list[Record]] = {}
    for record in records:
        case = record.run.case
        if case.system == FLOOR and case.budget == RESIDENT and not record.problem:
            found.setdefault((case.model, case.batch, case.prompt_tokens), []).append(record)
    return {
        key: Floor(
            median(record.ttft_ms for record in each),
            median(steps) if (steps := [record.step_ms for record in each if record.step_ms is not None]) else None,
        )
        for key, each in found.items()
    }


def floors_of(run: PeerRun, records: Iterable[Record]) -> list[Record]:
    """Those of the floor that a run may be compared with while it goes on: of its model, and from other runs."""
    return [each for each in records if each.run.case[:2] == (run.case.model, FLOOR) and each.run != run]


def step_limit_ms(record: Record, floor: Floor | None) -> float | None:
    """The least time of a decode step that reads so many bytes; None without a floor or decoded tokens."""
    if floor is None or floor.step_ms is None or not record.decoded_tokens:
        return None
    nbytes = record.bytes_per_token * record.run.case.batch
    return max(floor.step_ms, nbytes / record.disk_gbps / 1e6)


def ttft_limit_ms(record: Record, floor: Floor | None, work: PeerWork) -> float | None:
    """The least time of a cold prefill, in which each expert that it needs is read once; None without a floor."""
    if floor is None or floor.ttft_ms is None:
        return None
    if record.run.case.budget == RESIDENT:
        return floor.ttft_ms
    case = record.run.case
    first = union([reference.steps[0] for reference in job_references(work.reference, record.index, case.shape)])
    nbytes = sum(map(len, first)) * SYSTEMS[case.system].expert_bytes(work)
    return max(floor.ttft_ms, nbytes / record.disk_gbps / 1e6)


def expert_memory_bytes(record: Record, limit_bytes: int, work: PeerWork) -> int:
    """What is left of a budget for experts: without dense weights, keys and values, and what the processes need."""
    cache_bytes = kv_bytes(work.config, record.run.case.batch * record.run.case.shape.tokens)
    if "overhead_bytes" in record.facts:  # of a process that said so before it loaded the model
        overhead_bytes = int(record.facts["overhead_bytes"])
    elif isinstance(SYSTEMS[record.run.case.system], ZipMoe):  # experts are in shared memory
        overhead_bytes = record.anonymous_bytes - work.dense_bytes - cache_bytes
    else:  # all weights are in the page cache
        overhead_bytes = record.anonymous_bytes - cache_bytes
    return limit_bytes - work.dense_bytes - cache_bytes - max(overhead_bytes, 0)


def belady_bytes_per_token(records: Sequence[Record], limit_bytes: int, work: PeerWork) -> float | None:
    """Bytes a decoded token, had the system of a run known the future; None if no token was decoded.

    Args:
        records: of one run, in order, without problem.
        limit_bytes: its budget.
        work: the model, with stock's references.
    """
    case = records[0].run.case
    expert_bytes = SYSTEMS[case.system].expert_bytes(work)
    slots = max(0, int(min(expert_memory_bytes(record, limit_bytes, work) for record in records) // expert_bytes))
    passes: list[Pass] = []
    decoded = []
    for record in records:
        for step, experts in enumerate(job_steps(job_references(work.reference, record.index, case.shape))):
            passes += [(layer, frozenset(each)) for layer, each in enumerate(experts)]
            decoded += [step > 0] * len(experts)
    tokens = case.batch * (case.new_tokens - 1) * len(records)
    if not tokens:
        return None
    misses = belady_misses(passes, slots)
    return sum(count for count, counts in zip(misses, decoded, strict=True) if counts) * expert_bytes / tokens


def belady_misses(passes: Sequence[Pass], slots: int) -> list[int]:
    """Experts that each pass has to read, if those are kept that are needed again soonest.

    A pass needs its experts all at once and may use one without keeping it, so that no policy misses less.

    Source: Belady, A study of replacement algorithms for a virtual-storage computer, 1966.
    """
    following: dict[tuple[int, int], int] = {}
    next_uses: list[dict[tuple[int, int], int]] = []
    for when in range(len(passes) - 1, -1, -1):
        layer, experts = passes[when]
        keys = [(layer, expert) for expert in experts]
        next_uses.append({key: following[key] for key in keys if key in following})
        following.update(dict.fromkeys(keys, when))
    held: dict[tuple[int, int], int] = {}
    misses = []
    for layer, experts in passes:
        keys = [(layer, expert) for expert in experts]
        misses.append(sum(key not in held for key in keys))
        for key in keys:
            held.pop(key, None)
        held.update(next_uses.pop())
        if len(held) > slots:
            held = dict(sorted(held.items(), key=lambda item: item[1])[:slots])
    return misses


def job_steps(references: Sequence[Reference]) -> list[Routed]:
    """Experts of each step of a job whose sequences are computed together."""
    return [union(steps) for steps in zip(*(reference.steps for reference in references), strict=True)]


def union(routed: Sequence[Routed]) -> Routed:
    """Experts that any of several sequences uses in a step, by layer."""
    return tuple(tuple(sorted(set().union(*layers))) for layers in zip(*routed, strict=True))
