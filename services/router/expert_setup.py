"""What a router's experts are made of: policy, scheduler and brain, what is known of popularity and of this machine."""

from __future__ import annotations

from concurrent.futures import Executor

import structlog

from services.router.config import RouterConfig
from services.router.experts import ArenaExperts
from services.router.metrics import RouterMetrics
from services.router.outlook import Outlook
from services.router.placement import ArenaPlacement
from services.router.record import ServingRecord
from services.router.trace_file import TraceFile
from zipmoe.calibration.known import known_costs
from zipmoe.calibration.learnt import load_popularity
from zipmoe.calibration.plan_request import decode_layers, plan_request, uniform_popularity
from zipmoe.errors import NotFound
from zipmoe.residency.brain import Brain, BrainSettings
from zipmoe.residency.budget import computes_packed, slot_bytes
from zipmoe.residency.costs import Costs
from zipmoe.residency.expert_costs import expert_costs
from zipmoe.residency.guess_control import GuessControl
from zipmoe.residency.plan_watch import PlanWatch
from zipmoe.residency.policies import create_policy
from zipmoe.residency.pools import Grid
from zipmoe.residency.scheduler import FifoScheduler, Scheduler, make_scheduler
from zipmoe.rpc.budgeted import read_model_config
from zipmoe.store.manifest import Manifest
from zipmoe.types import ExpertKey

_LOG = structlog.get_logger(__name__)


def make_experts(
    config: RouterConfig,
    manifest: Manifest,
    device: str,
    placement: ArenaPlacement,
    metrics: RouterMetrics,
    planning: Executor,
) -> ArenaExperts:
    """Makes the provider of a router's experts, without a decoder yet.

    Args:
        config: the router's.
        manifest: of the store.
        device: `cpu` or `cuda`.
        placement: follows the decoders.
        metrics: the router's.
        planning: one thread.

    Raises:
        NotFound: the trace cannot be written.
        BudgetInfeasible: the memory budget cannot hold the model.
    """
    costs = _costs(config, manifest, device)
    grid = Grid(len(manifest.layers), max(layer.expert_count for layer in manifest.layers))
    brain = Brain(
        create_policy(config.policy, grid),
        _scheduler(config, manifest, costs),
        BrainSettings(packed_rows=1 << 30 if computes_packed(manifest, device) else 0),
    )
    trace = TraceFile(config.trace) if config.trace is not None else None
    record = ServingRecord(metrics, grid.layer_count, _outlook(config, manifest, costs, metrics, planning), trace)
    guesses = GuessControl(config.prefetch)
    return ArenaExperts(brain, guesses, placement, record, fetch_timeout_s=config.fetch_timeout_s)


def _costs(config: RouterConfig, manifest: Manifest, device: str) -> Costs | None:
    try:
        return known_costs(config.store, manifest, device, config.workers)
    except NotFound as error:
        effect = "no forecast" if config.scheduler == FifoScheduler.name else "no forecast, and fetches are not ordered"
        _LOG.warning("not_calibrated", reason=error.message, effect=effect, next_step=error.diagnostics())
        return None


def _scheduler(config: RouterConfig, manifest: Manifest, costs: Costs | None) -> Scheduler:
    if costs is None:
        return FifoScheduler()
    each = expert_costs(costs, manifest.record(ExpertKey(0, 0)))
    return make_scheduler(config.scheduler, each, config.workers, shares_cores=costs.shares_cores)


def _outlook(
    config: RouterConfig, manifest: Manifest, costs: Costs | None, metrics: RouterMetrics, planning: Executor
) -> Outlook:
    popularity = load_popularity(manifest) or uniform_popularity(manifest)
    pool_bytes = config.slots(manifest).nbytes(slot_bytes(manifest))
    if costs is None:
        return Outlook(manifest, popularity, None, pool_bytes, metrics, planning)
    request = plan_request(manifest, read_model_config(config.store), costs, popularity)
    watch = PlanWatch(popularity, request, decode_layers(manifest))
    outlook = Outlook(manifest, popularity, watch, pool_bytes, metrics, planning)
    outlook.begin(request)
    return outlook
