"""Prometheus series of the sessions of a service."""

from __future__ import annotations

from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric


class SessionCount(Protocol):
    """Source of the number of open sessions."""

    @property
    def session_count(self) -> int:
        """Number of open sessions."""


def session_metric(sessions: SessionCount) -> Metric:
    """Returns the present number of open sessions as a series."""
    return GaugeMetricFamily("zipmoe_sessions", "Sessions that are open.", value=sessions.session_count)
