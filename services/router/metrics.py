"""Prometheus series of requests and steps; `experts.brain_metrics` has the series of the experts' residency."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_DRAFT_SOURCES = ("match", "mtp")
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)


class RouterMetrics:
    """The router's own series, registered on `registry`. The number of label values is bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("zipmoe_requests", "Requests that have ended.", ["outcome"], registry=registry)
        self.running = Gauge("zipmoe_requests_running", "Requests that are being generated.", registry=registry)
        self.waiting = Gauge("zipmoe_requests_waiting", "Requests that wait to be admitted.", registry=registry)
        self.time_to_first_token = Histogram(
            "zipmoe_time_to_first_token_seconds",
            "Arrival of a request to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.inter_token = Histogram(
            "zipmoe_inter_token_seconds", "One token to the next.", buckets=_SECONDS, registry=registry
        )
        self.request_duration = Histogram(
            "zipmoe_request_seconds", "Arrival of a request to its end.", buckets=_SECONDS, registry=registry
        )
        self.waiting_prompt_tokens = Gauge(
            "zipmoe_prompt_tokens_waiting", "Prompt tokens of the requests that wait.", registry=registry
        )
        self.kv_pages = Gauge("zipmoe_kv_pages", "Pages of the KV cache by state.", ["state"], registry=registry)
        self.batch_rows = Histogram(
            "zipmoe_batch_rows",
            "Rows of requests that are generated, per pass that they share.",
            buckets=_ROWS,
            registry=registry,
        )
        self.preemptions = Counter(
            "zipmoe_preemptions", "Requests that gave their pages back, to be computed again.", registry=registry
        )
        self.prefix_tokens = Counter(
            "zipmoe_prefix_tokens_reused", "Tokens that were taken over instead of computed.", registry=registry
        )
        self.prefill_parts = Counter(
            "zipmoe_prefill_parts", "Steps that computed layers of a prompt.", registry=registry
        )
        self.prompt_tokens = Counter("zipmoe_prompt_tokens", "Tokens that were prefilled.", registry=registry)
        self.generated_tokens = Counter("zipmoe_generated_tokens", "Tokens that were generated.", registry=registry)
        self.drafted_tokens = Counter(
            "zipmoe_drafted_tokens",
            "Drafted tokens that were verified, each as a row of a pass; by match or by mtp.",
            ["source"],
            registry=registry,
        )
        self.accepted_tokens = Counter(
            "zipmoe_drafted_tokens_accepted",
            "Drafted tokens after which an answer went on in the same pass.",
            ["source"],
            registry=registry,
        )
        for source in _DRAFT_SOURCES:  # a series of zeros is shown before the first draft
            self.drafted_tokens.labels(source)
            self.accepted_tokens.labels(source)
        self.layer_stall = Histogram(
            "zipmoe_layer_stall_seconds",
            "Time the model waited for experts, per pass through one layer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.layer_stalled = Counter(
            "zipmoe_layer_stalled_seconds",
            "Time the model waited for experts, by MoE layer.",
            ["layer"],
            registry=registry,
        )
        self.model_seconds = Counter("zipmoe_model_seconds", "Time spent in forward passes.", registry=registry)
        self.fetch_messages = Counter(
            "zipmoe_fetch_messages", "Messages sent to the decoder about experts.", registry=registry
        )
        self.decoder_connected = Gauge(
            "zipmoe_decoder_connected", "1 while a session with a decoder is open.", registry=registry
        )
        self.decoders = Gauge("zipmoe_decoders_connected", "Decoders with an open session.", registry=registry)
        self.forecast_tpot = Gauge(
            "zipmoe_forecast_time_per_token_seconds",
            "Time per token of one request that the present plan forecasts; NaN without calibration.",
            registry=registry,
        )
        self.forecast_bytes = Gauge(
            "zipmoe_forecast_bytes_per_token", "Bytes from disk per token that it forecasts.", registry=registry
        )
        self.forecast_hits = Gauge(
            "zipmoe_forecast_hit_ratio",
            "Share of a token's experts that it expects in each state.",
            ["residency"],
            registry=registry,
        )
        for gauge in (self.forecast_tpot, self.forecast_bytes):
            gauge.set(float("nan"))
        self.exact = Gauge(
            "zipmoe_router_exact",
            "1 if torch's own bf16 linears give a row the same bits among any number of rows on this machine; 0 if "
            "only the kernels do, which then compute what requests share. Answers are stock's either way.",
            registry=registry,
        )
        self.compute_path = Gauge(
            "zipmoe_router_compute_path",
            "1 for the path by which requests are computed: shared, joined or in turn.",
            ["path"],
            registry=registry,
        )
        self.recorded_layers = Gauge(
            "zipmoe_router_recorded_layers",
            "Layers whose decode pass of one request is replayed from a recording (recorded), or runs the model's own "
            "code (eager).",
            ["state"],
            registry=registry,
        )
        self.torch_operations = Gauge(
            "zipmoe_router_torch_operations",
            "Operations of a replayed pass that torch computes between native segments.",
            registry=registry,
        )
        self.dense_matrices = Gauge(
            "zipmoe_router_dense_matrices",
            "Matrices of the model's linears by form in memory: bf16 as in the checkpoint, or losslessly compressed. "
            "Empty unless they were to be compressed.",
            ["form"],
            registry=registry,
        )
        self.dense_bytes = Gauge(
            "zipmoe_router_dense_bytes", "Bytes of the dense weights in memory, with scratch.", registry=registry
        )
        self.dense_saved_bytes = Gauge(
            "zipmoe_router_dense_saved_bytes",
            "Bytes that compressed dense weights take less than bf16.",
            registry=registry,
        )
        for state in ("used", "cached", "free"):
            self.kv_pages.labels(state)
        for outcome in ("stop", "length", "cancelled"):
            self.requests.labels(outcome)
