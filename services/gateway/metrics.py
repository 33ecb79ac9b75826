"""Prometheus series of the gateway."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

HEALTH_ROUTES = ("/health", "/healthz")
ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    *HEALTH_ROUTES,
)
OTHER_ROUTE = "other"
GONE = 499
"""The status of a client that disconnected before the end of its answer, for metrics and log. It is never sent."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class GatewayMetrics:
    """The gateway's own series, registered on `registry`. All unknown paths share a route, so labels are bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "zipmoe_gateway_requests",
            "HTTP requests that have ended, by status; 499 is a client that went away.",
            ["route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "zipmoe_gateway_request_seconds",
            "Begin of an HTTP request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "zipmoe_gateway_first_token_seconds",
            "Begin of an HTTP request to the first token from the router.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.open_requests = Gauge("zipmoe_gateway_requests_open", "HTTP requests at the moment.", registry=registry)
        self.open_streams = Gauge("zipmoe_gateway_streams_open", "Answers that are being streamed.", registry=registry)
        for route in ROUTES:
            self.requests.labels(route, "200")
            self.seconds.labels(route)
