"""Popularity of experts and the forecast of a plan, updated while serving and shown beside the measured values.

The arenas keep their sizes while serving, and the policy decides in every step which experts are resident. The
popularity that is learnt here is saved for the next start; `zipmoe plan` and `zipmoe up` divide the memory by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from typing import Final

import structlog

from zipmoe.calibration.saved_popularity import save_popularity
from zipmoe.errors import ZipMoeError
from zipmoe.planning.forecast import forecast
from zipmoe.planning.plan import Planner, PlanRequest, transient_window
from zipmoe.planning.plan_watch import PlanWatch
from zipmoe.planning.popularity import Popularity
from zipmoe.services.router.metrics import RouterMetrics
from zipmoe.store.format.manifest import Manifest

_LOG = structlog.get_logger(__name__)

SAVE_STEPS: Final = 2048
"""Decode steps between two saves of the popularity, which is also saved at the end."""


class LiveForecast:
    """Learns the popularity of experts from decode steps, plans again after a shift, and shows the forecast.

    Thread: the model thread; plans are computed on the executor.
    """

    def __init__(
        self,
        manifest: Manifest,
        popularity: Popularity,
        watch: PlanWatch | None,
        pool_bytes: int,
        metrics: RouterMetrics,
        planning: Executor,
    ) -> None:
        """Prepares the forecast; `begin` makes the first plan.

        Args:
            manifest: manifest of the store.
            popularity: statistics of earlier runs, updated by every decode step.
            watch: decides from the same statistics when a new plan is due; None without measured costs, and then there
                is no forecast.
            pool_bytes: bytes of all slots together.
            metrics: series that show the forecast.
            planning: executor with one thread.
        """
        self._manifest = manifest
        self._popularity = popularity
        self._watch = watch
        self._pool_bytes = pool_bytes
        self._metrics = metrics
        self._planning = planning
        self._steps = 0

    def begin(self, request: PlanRequest) -> None:
        """Plans `request` and shows the forecast, before the first step."""
        self._planning.submit(self._plan, request).add_done_callback(_tell)

    def used(self, layer: int, rows: Mapping[int, int]) -> None:
        """Counts the experts that a decode step has used in a layer."""
        self._popularity.used(layer, list(rows))

    def step_ended(self) -> None:
        """Counts a decode step; saves the popularity and plans again when due."""
        self._steps += 1
        if self._steps % SAVE_STEPS == 0:
            self._planning.submit(self._save, self._popularity.to_plain()).add_done_callback(_tell)
        request = None if self._watch is None else self._watch.step_ended()
        if request is not None:
            self._planning.submit(self._plan, request).add_done_callback(_tell)

    def close(self) -> None:
        """Saves the popularity, if there was a step."""
        if self._steps:
            self._save(self._popularity.to_plain())

    def _plan(self, request: PlanRequest) -> None:
        plan = Planner(request).plan(self._pool_bytes, transient_window(request, self._pool_bytes))
        expected = forecast(plan, request, prompt_tokens=64)
        self._metrics.forecast_tpot.set(expected.tpot_s)
        self._metrics.forecast_bytes.set(expected.bytes_per_token)
        for state, share in plan.hit_rates.items():
            self._metrics.forecast_hits.labels(state.value).set(share)
        _LOG.info("planned", tpot_ms=round(expected.tpot_s * 1e3, 2), slots=str(plan.slots))

    def _save(self, learnt: dict[str, object]) -> None:
        try:
            save_popularity(self._manifest, Popularity.from_plain(learnt))
        except OSError as error:
            _LOG.warning("popularity_not_kept", reason=str(error))


def _tell(task: Future[None]) -> None:
    failure = task.exception()
    if isinstance(failure, ZipMoeError):
        _LOG.info("no_forecast", reason=failure.message)
    elif failure is not None:
        _LOG.error("planning_failed", exc_info=failure)
