"""What is noted of every pass through a layer: stalls for the metrics, experts for the trace and for popularity."""

from __future__ import annotations

from collections.abc import Mapping

from zipmoe.residency.pools import Phase
from zipmoe.services.router.experts.live_forecast import LiveForecast
from zipmoe.services.router.experts.trace_file import TraceFile
from zipmoe.services.router.metrics import RouterMetrics
from zipmoe.simulation.trace import RoutedPass


class PassLog:
    """Told by `ArenaExperts` what happens.

    Thread: the model's thread.
    """

    def __init__(
        self, metrics: RouterMetrics, layer_count: int, outlook: LiveForecast, trace: TraceFile | None
    ) -> None:
        """Starts; `trace` is where passes are recorded, if anywhere."""
        self._metrics = metrics
        self._stalled = [metrics.layer_stalled.labels(str(layer)) for layer in range(layer_count)]
        self._outlook = outlook
        self._trace = trace
        self._step = -1
        self._phase = Phase.PREFILL
        self._tokens = 0

    def step_begun(self, phase: Phase, tokens: int) -> None:
        """A forward pass of so many rows begins, and so the one before has ended."""
        self._end_step()
        self._step += 1
        self._phase, self._tokens = phase, tokens

    def layer_passed(self, layer: int, rows: Mapping[int, int], stall_s: float) -> None:
        """A layer's experts have been computed; the model waited for them so long."""
        self._metrics.layer_stall.observe(stall_s)
        self._stalled[layer].inc(stall_s)
        if self._phase is Phase.DECODE:
            self._outlook.used(layer, rows)
        if self._trace is not None:
            self._trace.add(RoutedPass(self._step, layer, self._phase, tuple(rows), self._tokens))

    def message_sent(self) -> None:
        """Work was sent to a decoder."""
        self._metrics.fetch_messages.inc()

    def close(self) -> None:
        """Writes and keeps what is left."""
        self._end_step()
        if self._trace is not None:
            self._trace.close()
        self._outlook.close()

    def _end_step(self) -> None:
        if self._trace is not None:
            self._trace.flush()
        if self._phase is Phase.DECODE:
            self._outlook.step_ended()
