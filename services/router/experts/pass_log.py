"""Log of every layer pass: stalls for the metrics, used experts for the trace and the popularity."""

from __future__ import annotations

from collections.abc import Mapping

from zipmoe.residency.pools import Phase
from zipmoe.services.router.experts.live_forecast import LiveForecast
from zipmoe.services.router.experts.trace_file import TraceFile
from zipmoe.services.router.metrics import RouterMetrics
from zipmoe.simulation.trace import RoutedPass


class PassLog:
    """Receives the events of `ArenaExperts`: begun steps, passed layers, sent messages.

    Thread: the model thread.
    """

    def __init__(
        self, metrics: RouterMetrics, layer_count: int, forecast: LiveForecast, trace: TraceFile | None
    ) -> None:
        """Makes the log before any step has begun; `trace` is the file that records layer passes, or None."""
        self._metrics = metrics
        self._stalled = [metrics.layer_stalled.labels(str(layer)) for layer in range(layer_count)]
        self._forecast = forecast
        self._trace = trace
        self._step = -1
        self._phase = Phase.PREFILL
        self._tokens = 0

    def step_begun(self, phase: Phase, tokens: int) -> None:
        """Ends the previous step and begins a forward pass of `tokens` rows."""
        self._end_step()
        self._step += 1
        self._phase, self._tokens = phase, tokens

    def layer_passed(self, layer: int, rows: Mapping[int, int], stall_s: float) -> None:
        """Logs that the experts of a layer have been computed, with a stall of `stall_s` seconds."""
        self._metrics.layer_stall.observe(stall_s)
        self._stalled[layer].inc(stall_s)
        if self._phase is Phase.DECODE:
            self._forecast.used(layer, rows)
        if self._trace is not None:
            self._trace.add(RoutedPass(self._step, layer, self._phase, tuple(rows), self._tokens))

    def message_sent(self) -> None:
        """Counts a message to a decoder."""
        self._metrics.fetch_messages.inc()

    def close(self) -> None:
        """Ends the last step, closes the trace and saves the popularity."""
        self._end_step()
        if self._trace is not None:
            self._trace.close()
        self._forecast.close()

    def _end_step(self) -> None:
        if self._trace is not None:
            self._trace.flush()
        if self._phase is Phase.DECODE:
            self._forecast.step_ended()
