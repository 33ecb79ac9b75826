"""Builds the setup of `zipmoe simulate`: a store on this machine, or round numbers for machine and experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zipmoe.calibration.measure import ensure_calibration
from zipmoe.calibration.plan_request import plan_request
from zipmoe.cli.console import waiting
from zipmoe.cli.planning.budget_settings import parse_budgeted
from zipmoe.cli.size import format_size, parse_size
from zipmoe.errors import InvalidRequest
from zipmoe.planning.costs import Costs, RowCost
from zipmoe.planning.layer_time import ExpertBytes
from zipmoe.planning.memory_split import arena_bytes
from zipmoe.planning.plan import Planner, PlanRequest, transient_window
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.planning.popularity import Popularity
from zipmoe.process.budgeted import read_model_config
from zipmoe.residency.pools import Grid
from zipmoe.simulation.simulator import ReplaySetup
from zipmoe.simulation.trace import RoutedPass, grid_of, selections_per_token
from zipmoe.store.format.manifest import Manifest, read_manifest
from zipmoe.store.read.read_defaults import IO_THREADS, REQUEST_BYTES

NOMINAL_EXPERT = ExpertBytes(e=2_940_928, sm=8_650_752, tensor=17_301_504)
"""Bytes of an expert of Qwen1.5-MoE, packed to 0.67 of bf16."""

NOMINAL_COSTS = Costs(
    read_latency_s=1e-3,
    read_overhead_s=3e-4,
    read_bytes_per_s=1.5e9,
    recover_bytes_per_s=5e9,
    worker_count=2,
    full_ffn=RowCost(0.7e-3, 0.5e-3),
    packed_ffn=RowCost(1.1e-3, 0.5e-3),
    dense=RowCost(3e-3, 0.2e-3),
)
"""Round numbers for a small machine. They suffice to rank policies, but do not predict the speed of a machine."""


@dataclass(frozen=True)
class SetupRequest:
    """The user's choice of store, memory and scheduler. Either `memory_budget` or `capacity` is given."""

    store: Path | None
    memory_budget: str | None
    capacity: float | None
    device: str
    scheduler: str
    seed: int


@dataclass(frozen=True)
class DescribedSetup:
    """A simulation setup, with a description of its sources for people."""

    setup: ReplaySetup
    based_on: dict[str, str]


def make_setup(request: SetupRequest, passes: Sequence[RoutedPass], *, quiet: bool) -> DescribedSetup:
    """Builds the setup that a trace is replayed on.

    Raises:
        InvalidRequest: the capacity is not in (0, 1], or the trace is not of this store.
        BudgetInfeasible: the budget is too small.
        ZipMoeError: the store cannot be read or measured.
    """
    if request.store is not None:
        grid, plan, nbytes, based_on = _of_store(request, request.store, passes, quiet=quiet)
    else:
        grid = grid_of(passes)
        popularity = Popularity([grid.expert_count] * grid.layer_count)
        popularity.seed(passes)
        chosen = min(selections_per_token(passes), grid.expert_count)
        inclusion = [popularity.inclusion(layer, popularity.chosen(layer, chosen)) for layer in range(grid.layer_count)]
        plan = PlanRequest(inclusion, NOMINAL_COSTS, NOMINAL_EXPERT, PoolSizes(*NOMINAL_EXPERT))
        nbytes = parse_size(request.memory_budget) if request.memory_budget is not None else 0
        based_on = {"machine and experts": "round numbers; name a --store for its own"}
    if request.capacity is not None:
        slots, transient = _slots_of_capacity(request.capacity, grid, plan), ReplaySetup.transient_slots
    else:
        window = transient_window(plan, nbytes)
        slots, transient = Planner(plan).plan(nbytes, window).slots, window.e
    setup = ReplaySetup(grid, slots, plan.costs, plan.expert, request.scheduler, transient, request.seed)
    held = ", ".join(f"{count} {pool}" for count, pool in zip(slots, ("E", "SM", "tensor"), strict=True))
    based_on["slots"] = f"{held}, {format_size(slots.nbytes(plan.slot_bytes))}"
    return DescribedSetup(setup, based_on)


def _of_store(
    request: SetupRequest, store: Path, passes: Sequence[RoutedPass], *, quiet: bool
) -> tuple[Grid, PlanRequest, int, dict[str, str]]:
    manifest = read_manifest(store)
    grid = Grid(len(manifest.layers), max(layer.expert_count for layer in manifest.layers))
    popularity = _popularity(manifest, passes, store)
    settings = {"store": store, "memory_budget": request.memory_budget, "device": request.device}
    config = parse_budgeted(settings, "simulate")
    with waiting("measuring this machine", quiet=quiet) as show:
        calibration = ensure_calibration(store, manifest, request.device, lambda what: show(f"measuring: {what}"))
    costs = calibration.costs(
        manifest.digest,
        device=request.device,
        worker_count=config.workers,
        io_threads=IO_THREADS,
        request_bytes=REQUEST_BYTES,
    )
    model = read_model_config(store, manifest)
    nbytes = 0
    if config.memory_budget is not None and request.capacity is None:
        config.split(manifest, request.device)  # an infeasible budget fails here and names the smallest feasible one
        nbytes = arena_bytes(manifest, model, config.budget_request(int(config.memory_budget), request.device))
    plan = plan_request(manifest, model, costs, popularity)
    return grid, plan, nbytes, {"store": str(store), "machine": "this one, as calibrated"}


def _popularity(manifest: Manifest, passes: Sequence[RoutedPass], store: Path) -> Popularity:
    """Returns the popularity of experts that a plan would learn from the trace."""
    popularity = Popularity([layer.expert_count for layer in manifest.layers])
    try:
        popularity.seed(passes)
    except InvalidRequest as error:
        raise InvalidRequest(f"the trace is not of the store {store}: {error.message}") from error
    return popularity


def _slots_of_capacity(capacity: float, grid: Grid, plan: PlanRequest) -> PoolSizes:
    """Returns slots for a fraction of the experts: PACKED, or FULL if no kernel computes on PACKED experts."""
    if not 0 < capacity <= 1:
        raise InvalidRequest(f"a capacity of {capacity} is no part of the experts: expected above 0, at most 1")
    count = max(1, round(capacity * grid.size))
    if plan.costs.packed_ffn is not None:
        return PoolSizes(count, count, 0)
    return transient_window(plan, count * plan.slot_bytes.tensor)._replace(tensor=count)
