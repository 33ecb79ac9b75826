"""Makes a router's expert provider from policy, scheduler, brain, saved popularity and the measured costs."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import structlog

from zipmoe.calibration.calibrated_costs import calibrated_costs
from zipmoe.calibration.plan_request import decode_layers, plan_request, uniform_popularity
from zipmoe.calibration.saved_popularity import load_popularity
from zipmoe.errors import NotFound
from zipmoe.planning.costs import Costs
from zipmoe.planning.expert_costs import expert_costs
from zipmoe.planning.memory_split import computes_packed, slot_bytes
from zipmoe.planning.plan_watch import PlanWatch
from zipmoe.planning.popularity import Popularity
from zipmoe.process.budgeted import read_model_config
from zipmoe.residency.brain import Brain, BrainSettings
from zipmoe.residency.guess_control import GuessControl
from zipmoe.residency.policies.registry import create_policy
from zipmoe.residency.pools import Grid
from zipmoe.residency.scheduler import FifoScheduler, Scheduler, make_scheduler
from zipmoe.services.router.config import RouterConfig
from zipmoe.services.router.experts.arena_experts import ArenaExperts
from zipmoe.services.router.experts.arena_placement import ArenaPlacement
from zipmoe.services.router.experts.decoder_sessions import DecoderSessions
from zipmoe.services.router.experts.live_forecast import LiveForecast
from zipmoe.services.router.experts.pass_log import PassLog
from zipmoe.services.router.experts.trace_file import TraceFile
from zipmoe.services.router.metrics import RouterMetrics
from zipmoe.store.format.manifest import Manifest
from zipmoe.types import ExpertKey

_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ExpertSetup:
    """Makes the provider of a router's experts.

    Attributes:
        config: settings of the router.
        manifest: manifest of the store.
        device: `cpu` or `cuda`.
        metrics: Prometheus series of the router.
        planning: executor with one thread, for plans.
        compressed_dense: whether the dense weights are compressed in memory.
    """

    config: RouterConfig
    manifest: Manifest
    device: str
    metrics: RouterMetrics
    planning: Executor
    compressed_dense: bool = False

    def make(self, placement: ArenaPlacement) -> ArenaExperts:
        """Makes the provider; no decoder is attached yet.

        Args:
            placement: placement that the provider binds to the arenas of the attached decoders.

        Raises:
            NotFound: the trace cannot be written.
            BudgetInfeasible: the memory budget cannot hold the model.
        """
        config, layers = self.config, self.manifest.layers
        costs = self._costs()
        grid = Grid(len(layers), max(layer.expert_count for layer in layers))
        packed_rows = 1 << 30 if computes_packed(self.manifest, self.device) else 0
        brain = Brain(create_policy(config.policy, grid), self._scheduler(costs), BrainSettings(packed_rows))
        trace = TraceFile(config.trace) if config.trace is not None else None
        popularity = load_popularity(self.manifest) or uniform_popularity(self.manifest)
        pass_log = PassLog(self.metrics, grid.layer_count, self._forecast(costs, popularity), trace)
        decoders = DecoderSessions(
            brain,
            placement,
            pass_log,
            fetch_timeout_s=config.fetch_timeout_s,
            fill_order=popularity.ranked if config.fill == "idle" else list,
        )
        return ArenaExperts(brain, GuessControl(config.prefetch), decoders, pass_log)

    def _costs(self) -> Costs | None:
        try:
            return calibrated_costs(
                self.config.store,
                self.manifest,
                self.device,
                self.config.workers,
                compressed=self.compressed_dense,
                tensor_form=self.config.tensor_form,
            )
        except NotFound as error:
            fifo = self.config.scheduler == FifoScheduler.name
            effect = "no forecast" if fifo else "no forecast, and fetches are not ordered"
            _LOG.warning("not_calibrated", reason=error.message, effect=effect, next_step=error.diagnostics())
            return None

    def _scheduler(self, costs: Costs | None) -> Scheduler:
        if costs is None:
            return FifoScheduler()
        each = expert_costs(costs, self.manifest.record(ExpertKey(0, 0)))
        return make_scheduler(self.config.scheduler, each, self.config.workers, shares_cores=costs.shares_cores)

    def _forecast(self, costs: Costs | None, popularity: Popularity) -> LiveForecast:
        manifest, form = self.manifest, self.config.tensor_form
        pool_bytes = self.config.slots(manifest, self.device).nbytes(slot_bytes(manifest, form))
        if costs is None:
            return LiveForecast(manifest, popularity, None, pool_bytes, self.metrics, self.planning)
        request = plan_request(manifest, read_model_config(self.config.store, manifest), costs, popularity, form)
        watch = PlanWatch(popularity, request, decode_layers(manifest))
        forecast = LiveForecast(manifest, popularity, watch, pool_bytes, self.metrics, self.planning)
        forecast.begin(request)
        return forecast
