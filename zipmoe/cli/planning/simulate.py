"""`zipmoe simulate`: replays a routing trace with cache policies."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zipmoe.cli.chart import chart, charts, check_svg_name
from zipmoe.cli.console import JsonFlag, facts, out, print_json, table, waiting
from zipmoe.cli.size import format_size
from zipmoe.errors import InvalidRequest

if TYPE_CHECKING:
    from zipmoe.simulation.simulator import ReplaySetup, SimulationOutcome
    from zipmoe.simulation.trace import RoutedPass

ALL = "all"
PLOT_POINTS = 60
PARALLEL_PASSES = 50_000
"""Passes, summed over all policies, from which a replay uses several processes: some ten seconds of work."""


def simulate(
    trace: Annotated[Path | None, typer.Argument(metavar="[TRACE]", help="Trace that `--trace` has recorded.")] = None,
    generate: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Instead, make one: uniform, zipf, prompt-local or shifting."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of a made trace.")] = 5000,
    prefill_every: Annotated[
        int, typer.Option(min=0, help="In a made trace, prefill 512 tokens before every so many steps; 0 for never.")
    ] = 0,
    capacity: Annotated[
        float | None, typer.Option(help="Part of the experts for which there are slots.  [default: 0.5]")
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Or: ceiling over all services; without --store, bytes of all slots."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Store whose experts are simulated, on this machine.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the model computes: cpu or cuda.")] = "cpu",
    policy: Annotated[str, typer.Option(help="Names of policies, comma-separated, or all.")] = ALL,
    scheduler: Annotated[str, typer.Option(help="block or fifo.")] = "block",
    seed: Annotated[int, typer.Option(min=0, help="Of the made trace, and of policies that draw at random.")] = 0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw misses over time into an SVG file.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Replays a trace through the serving code with every policy, and with Belady's policy as the bound.

    Prints the misses, the bytes read and the stalls of each policy in decode steps. With --store, times come from this
    machine's figures, which are measured if they are missing. Without --store, times come from round numbers, which
    are good for comparisons only.
    """
    from zipmoe.cli.planning.simulated_setup import SetupRequest, make_setup
    from zipmoe.simulation.simulator import simulated_policy_names

    names = _policies(policy, simulated_policy_names())
    if capacity is not None and memory_budget is not None:
        raise InvalidRequest("--capacity and --memory-budget both say how many experts fit: give one of them")
    if plot is not None:
        check_svg_name(plot)
    passes = _passes(trace, generate, steps, seed, prefill_every)
    if capacity is None and memory_budget is None:
        capacity = 0.5
    request = SetupRequest(store, memory_budget, capacity, device, scheduler, seed)
    described = make_setup(request, passes, quiet=json_output)
    with waiting("simulating", quiet=json_output) as show:
        outcomes = _replay(passes, names, described.setup, show)
    if plot is not None:
        plot.write_text(_draw(outcomes), encoding="utf-8")
    if json_output:
        slots = described.setup.slots._asdict()
        rows = [_row(outcome) for outcome in outcomes]
        print_json({"rows": rows, "slots": slots, "based_on": described.based_on})
        return
    out().print(facts("simulated", {"trace": trace or f"{generate}, seed {seed}", **described.based_on}))
    out().print()
    out().print(_table(outcomes))


def _policies(asked: str, known: Sequence[str]) -> list[str]:
    names = list(known) if asked == ALL else [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in known:
            raise InvalidRequest(f"there is no policy {name!r}, only {', '.join(known)} and {ALL}")
    return names


def _passes(
    trace: Path | None, generate: str | None, steps: int, seed: int, prefill_every: int
) -> Sequence[RoutedPass]:
    from zipmoe.simulation.trace import load_trace
    from zipmoe.simulation.workload import Workload
    from zipmoe.simulation.workload import generate as make

    if (trace is None) == (generate is None):
        raise InvalidRequest("either a TRACE or --generate NAME has to be given")
    if generate is not None:
        return list(make(Workload(generate, steps, seed, prefill_every=prefill_every)))
    assert trace is not None
    return load_trace(trace)


def _replay(
    passes: Sequence[RoutedPass], names: Sequence[str], setup: ReplaySetup, show: Callable[[str], None]
) -> list[SimulationOutcome]:
    """Replays a trace with each policy, in parallel processes if the work is long."""
    from zipmoe.simulation.simulator import simulate as replay

    jobs = min(len(names), len(os.sched_getaffinity(0)))
    if jobs == 1 or len(names) * len(passes) < PARALLEL_PASSES:
        outcomes = []
        for name in names:
            show(f"simulating {name}")
            outcomes.append(replay(passes, name, setup))
        return outcomes
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Spawned, not forked: a process with threads must not be forked.
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        return list(pool.map(partial(replay, passes, setup=setup), names))


def _row(outcome: SimulationOutcome) -> dict[str, Any]:
    return {
        "policy": outcome.policy,
        "misses": outcome.misses,
        "bytes": outcome.bytes_read,
        "stall_s": outcome.stall_s,
        "tpot_ms": outcome.tpot_s * 1e3,
        "prefill_misses": outcome.prefill_misses,
    }


def _table(outcomes: Sequence[SimulationOutcome]) -> Any:
    steps = max(1, len(outcomes[0].step_misses))
    rows = [
        (
            outcome.policy,
            outcome.misses,
            f"{outcome.misses / steps:.2f}",
            format_size(outcome.bytes_read),
            f"{outcome.bytes_read / steps / 1e6:.1f} MB",
            f"{outcome.stall_s:.2f} s",
            f"{outcome.tpot_s * 1e3:.1f} ms",
            outcome.prefill_misses,
        )
        for outcome in outcomes
    ]
    columns = ("policy", "misses", "a token", "read", "a token", "stalls", "TPOT", "misses of prefills")
    return table(f"{steps} decode steps", columns, rows)


def _draw(outcomes: Sequence[SimulationOutcome]) -> str:
    """Draws misses per decode step over time, averaged over intervals of equal length."""
    lines = {}
    for outcome in outcomes:
        misses = outcome.step_misses
        stretch = max(1, -(-len(misses) // PLOT_POINTS))
        pieces = [misses[start : start + stretch] for start in range(0, len(misses), stretch)]
        points = [(index * stretch + len(piece) / 2, sum(piece) / len(piece)) for index, piece in enumerate(pieces)]
        lines[outcome.policy] = points or [(0.0, 0.0)]
    return charts([chart("Misses per decode step", "decode step", "experts", lines)])
