"""Makes the stepper of a router from its settings."""

from __future__ import annotations

import structlog

from zipmoe.errors import UnsupportedModel
from zipmoe.model.build.build import BuiltModel
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.passes.joined import JoinedModel
from zipmoe.model.passes.ragged import RaggedModel
from zipmoe.model.passes.side_by_side import SideBySide
from zipmoe.model.probe.result import ComputePath, ProbeResult
from zipmoe.model.program.report import RowReport
from zipmoe.model.text.stock_generation import StockGeneration
from zipmoe.model.text.token_ids_only import AnyTokenizer
from zipmoe.services.router.config import RouterConfig
from zipmoe.services.router.engine.generation import Generation
from zipmoe.services.router.engine.joined_passes import JoinedPasses, SideBySidePasses
from zipmoe.services.router.engine.passes import StepExperts, StepModel
from zipmoe.services.router.engine.request import Request
from zipmoe.services.router.engine.shared_passes import SharedPasses
from zipmoe.services.router.engine.stepper import Stepper
from zipmoe.services.router.metrics import RouterMetrics
from zipmoe.serving.pages import PAGE_TOKENS, PageLedger
from zipmoe.serving.planner import StepLimits, StepPlanner
from zipmoe.serving.ticket import Ticket

_LOG = structlog.get_logger(__name__)

REPLAY_ROWS, LATENT_REPLAY_ROWS = 16, 2
"""Answer rows of a preempted request that one step computes again. With latents the number is smaller, since every row
expands all latents of its context anew."""

GROUPED = 2
"""Prompts that begin together have at most this multiple of `prefill_rows` tokens, or `max_prompt_tokens` if that is
more. An expert that is fetched for one of the prompts serves all prompts of the group. The state of a token between
layers takes a hundredth of its keys and values."""


def cache_tokens(config: RouterConfig, model: BuiltModel) -> int:
    """Returns the tokens of the longest sequence that the KV cache holds.

    For a decoder-only model, these are whole pages. For an encoder-decoder, prompt and answer each have this limit.
    """
    if model.encoder_decoder:
        return config.kv_tokens
    return config.kv_tokens // PAGE_TOKENS * PAGE_TOKENS


class StepSetup:
    """Makes the stepper of a router."""

    def __init__(
        self,
        config: RouterConfig,
        metrics: RouterMetrics,
        tokenizer: AnyTokenizer,
        probe: ProbeResult,
        state_requests: int | None = None,
    ) -> None:
        """Keeps the settings that `make` uses.

        Args:
            config: settings of the router.
            metrics: series of the router.
            tokenizer: turns tokens into text.
            probe: result of the model's probe.
            state_requests: requests whose recurrent states the memory budget holds; None for no such limit.
        """
        self._state_requests = state_requests
        self.path, self.reason = probe.path, probe.reason
        """The path that requests are computed by, and why no better one is taken; final once `make` has returned."""
        self.recorded = RowReport(0, "only requests that share passes are computed by a recorded pass")
        """What of a pass of one row is replayed; final once `make` has returned."""
        self._probe = probe
        self._config = config
        self._metrics = metrics
        self._tokenizer = tokenizer

    def make(self, built: BuiltModel, linears: Linears | None, experts: StepExperts) -> Stepper:
        """Makes a stepper and allocates its KV cache.

        Args:
            built: the model.
            linears: the linears that the model was built with; None on a GPU.
            experts: the model's expert provider; told of every pass.
        """
        model, replay_rows = self._model(built, linears, experts)
        limits = StepLimits(
            max_running=min(self._config.max_running, self._state_requests or self._config.max_running),
            max_waiting=self._config.max_waiting,
            max_waiting_tokens=self._config.max_waiting_tokens,
            replay_rows=replay_rows,
            group_rows=max(GROUPED * self._config.prefill_rows, self._config.max_prompt_tokens),
        )
        planner = StepPlanner(PageLedger(model.page_count), limits)
        stock = StockGeneration(built.model, built.generation_config)

        def begin(request: Request, ticket: Ticket) -> Generation:
            return Generation(request, ticket, self._tokenizer, stock)

        return Stepper(model, planner, experts, self._metrics, begin)

    def _model(self, built: BuiltModel, linears: Linears | None, experts: StepExperts) -> tuple[StepModel, int]:
        pages = cache_tokens(self._config, built) // PAGE_TOKENS
        reason = self._probe.reason
        if built.encoder_decoder:
            # The budget counts self-attention and cross-attention for every token (`kv_bytes_per_token`), but a
            # token of prompt or answer takes only one of the two.
            pages *= 2
        if self._probe.path is ComputePath.SHARED:
            try:
                if built.encoder_decoder:
                    return self._side_by_side(built, linears, pages, experts), 1
                return self._shared(built, linears, pages, experts)
            except UnsupportedModel as error:  # what the device lacks, the probe of the model cannot know
                reason = error.message
        together = self._probe.path is not ComputePath.IN_TURN
        path = ComputePath.JOINED if together else ComputePath.IN_TURN
        self._tell(path, reason)
        rows = self._config.prefill_rows
        return JoinedPasses(JoinedModel(built), pages, rows, experts, together=together), 1

    def _side_by_side(
        self, built: BuiltModel, linears: Linears | None, pages: int, experts: StepExperts
    ) -> SideBySidePasses:
        side_by_side = SideBySide(built, linears)
        self._tell(ComputePath.SHARED, "")
        return SideBySidePasses(JoinedModel(built), side_by_side, pages, self._config.prefill_rows, experts)

    def _shared(
        self, built: BuiltModel, linears: Linears | None, pages: int, experts: StepExperts
    ) -> tuple[SharedPasses, int]:
        ragged = RaggedModel(built, linears, pages, self._config.kv_cache)
        latent = ragged.pool.layout.latent
        if latent and self._config.kv_cache == "expanded":
            _LOG.info("latents_kept", reason="the bits of an expansion may depend on how many rows there are")
        rows = LATENT_REPLAY_ROWS if latent else REPLAY_ROWS
        _LOG.info("kv_pool", pages=pages, page_tokens=PAGE_TOKENS, bytes=ragged.pool.nbytes, latent=latent)
        self._tell(ComputePath.SHARED, "")
        self._record(ragged)
        return SharedPasses(ragged, self._config.prefill_rows, experts), rows

    def _record(self, ragged: RaggedModel) -> None:
        """Records the pass of one row, unless the settings say eager; logs, exports and keeps what is replayed."""
        if self._config.row_pass == "auto":
            report = ragged.record_row()
        else:
            report = RowReport(ragged.layer_count, "the setting --pass eager")
        self.recorded = report
        for state, count in (
            ("recorded", report.recorded_layers),
            ("eager", report.layers - report.recorded_layers),
        ):
            self._metrics.recorded_layers.labels(state).set(count)
        self._metrics.torch_operations.set(report.torch_operations)
        log = _LOG.warning if report.failed or report.eager else _LOG.info
        log(
            "pass_recorded",
            layers=report.layers,
            recorded=report.recorded_layers,
            eager=report.why_eager,
            by_torch=report.why_not_native,
            bytes=report.nbytes,
            seconds=round(report.seconds, 2),
        )

    def _tell(self, path: ComputePath, reason: str) -> None:
        """Logs and exports the path, and keeps it with its reason for `GetModel`."""
        self.path, self.reason = path, reason
        for each in ComputePath:
            self._metrics.compute_path.labels(each.value).set(int(each is path))
        _LOG.info("compute_path", path=path.value, reason=reason, lazy=self._probe.lazy)
