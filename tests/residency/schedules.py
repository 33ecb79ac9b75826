"""What a schedule is judged by: the optimum of a small instance by exhaustive search, and bounds of a large one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hypothesis import strategies as st

from zipmoe.residency.state import Residency
from zipmoe.residency.tasks import MISSING_PARTS, ExpertCosts, FetchRequest, TensorCosts
from zipmoe.types import ExpertKey, Part

#: (seconds on the channel, seconds of each recovery that can begin then)
Step = tuple[float, tuple[float, ...]]


def requests_in(*states: Residency, form: Residency = Residency.FULL) -> list[FetchRequest]:
    """One request in each of the states, in one layer."""
    return [FetchRequest(ExpertKey(0, expert), state, form) for expert, state in enumerate(states)]


def costs(max_tensors: int, max_chunks: int) -> st.SearchStrategy[ExpertCosts]:
    """Costs in whole milliseconds, so that sums in any order are exact."""

    def tensor(draw: tuple[int, int, int, int]) -> TensorCosts:
        e_read, sm_read, recover, chunks = draw
        return TensorCosts(float(e_read * chunks), float(sm_read), float(recover * chunks), chunks)

    figures = st.tuples(st.integers(0, 4), st.integers(0, 12), st.integers(1, 12), st.integers(1, max_chunks))
    return st.lists(figures.map(tensor), min_size=1, max_size=max_tensors).map(tuple)


def lower_bound_s(requests: Iterable[FetchRequest], costs: ExpertCosts, worker_count: int) -> float:
    """No schedule has fetched everything before: all reads, the recoveries' share of a worker, the longest chain."""
    requests = list(requests)
    recovered = [(request, cost) for request in requests if request.recovers for cost in costs]
    chains = (
        _reads_before_one_recovery_s(request, cost) + cost.recover_s / cost.chunk_count for request, cost in recovered
    )
    return max(
        sum(cost.read_s(request.state) for request in requests for cost in costs),
        sum(cost.recover_s for _, cost in recovered) / worker_count,
        max(chains, default=0.0),
    )


def _reads_before_one_recovery_s(request: FetchRequest, cost: TensorCosts) -> float:
    parts = MISSING_PARTS[request.state]
    e_chunk_s = cost.e_read_s / cost.chunk_count if parts & Part.E else 0.0
    return e_chunk_s + (cost.sm_read_s if parts & Part.SM else 0.0)


def optimum_s(requests: Iterable[FetchRequest], costs: ExpertCosts, worker_count: int) -> float:
    """The least time in which everything can be fetched, by search over all orders of reads and of recoveries.

    An SM-chunk and the first E-chunk of its tensor serve nothing alone, so reading them one after the other is never
    worse; all other orders are tried. Recoveries are started in every order, each on the worker that is free first:
    that covers an optimum, because its recoveries can be taken in the order in which they begin.
    """
    chains: list[list[Step]] = []
    at_once: list[float] = []
    for request in requests:
        if not request.recovers:
            continue
        for cost in costs:
            unit_s = cost.recover_s / cost.chunk_count
            parts = MISSING_PARTS[request.state]
            e_chunk_s = cost.e_read_s / cost.chunk_count
            if parts is Part.NONE:
                at_once += [unit_s] * cost.chunk_count
            elif parts is Part.SM:
                chains.append([(cost.sm_read_s, (unit_s,) * cost.chunk_count)])
            else:
                sm_read_s = cost.sm_read_s if parts & Part.SM else 0.0
                first: list[Step] = [(sm_read_s + e_chunk_s, (unit_s,))]
                chains.append(first + [(e_chunk_s, (unit_s,))] * (cost.chunk_count - 1))
    best = float("inf")
    for steps in _interleavings(chains):
        channel_s = 0.0
        released = [(0.0, unit_s) for unit_s in at_once]
        for read_s, units in steps:
            channel_s += read_s
            released += [(channel_s, unit_s) for unit_s in units]
        best = min(best, max(channel_s, _shortest_s(released, worker_count, best)))
    return best


def _interleavings(chains: Sequence[Sequence[Step]]) -> Iterator[list[Step]]:
    """All orders of all steps that keep each chain's own order; equal chains are not told apart."""
    if not any(chains):
        yield []
        return
    for index, chain in enumerate(chains):
        if chain and chain not in chains[:index]:
            for rest in _interleavings([*chains[:index], chain[1:], *chains[index + 1 :]]):
                yield [chain[0], *rest]


def _shortest_s(released: list[tuple[float, float]], worker_count: int, limit_s: float) -> float:
    """The least time in which workers can do (release, duration) jobs; `limit_s` if it is not below that."""

    def search(left: list[tuple[float, float]], free: list[float], so_far_s: float, best_s: float) -> float:
        if so_far_s >= best_s:
            return best_s
        if not left:
            return so_far_s
        for duration in {duration for _, duration in left}:  # of equally long ones the first released goes first
            job = min(each for each in left if each[1] == duration)
            rest = left.copy()
            rest.remove(job)
            worker = free.index(min(free))
            end = max(free[worker], job[0]) + duration
            best_s = search(rest, [*free[:worker], end, *free[worker + 1 :]], max(so_far_s, end), best_s)
        return best_s

    return search(released, [0.0] * worker_count, 0.0, limit_s)
