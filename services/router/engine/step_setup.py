"""Makes the stepper of a router from its settings."""

from __future__ import annotations

import time

import structlog
import torch

from zipmoe.errors import UnsupportedModel
from zipmoe.model.build.build import BuiltModel
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.passes.joined import JoinedModel
from zipmoe.model.passes.page_reuse import page_reuse
from zipmoe.model.passes.ragged import RaggedModel
from zipmoe.model.passes.side_by_side import SideBySide
from zipmoe.model.probe.result import ComputePath, ProbeResult
from zipmoe.model.program.report import RowReport
from zipmoe.model.stock.generation_settings import StockGeneration
from zipmoe.model.text.token_ids_only import AnyTokenizer
from zipmoe.services.router.config import RouterConfig
from zipmoe.services.router.engine.generation import Generation
from zipmoe.services.router.engine.joined_passes import JoinedPasses, SideBySidePasses
from zipmoe.services.router.engine.mtp_drafts import MtpDrafts
from zipmoe.services.router.engine.passes import StepExperts, StepModel
from zipmoe.services.router.engine.request import Request
from zipmoe.services.router.engine.shared_passes import SharedPasses
from zipmoe.services.router.engine.start_check import check_start
from zipmoe.services.router.engine.stepper import Stepper
from zipmoe.services.router.kept_note import KeptNote
from zipmoe.services.router.metrics import RouterMetrics
from zipmoe.serving.pages import PAGE_TOKENS, PageLedger
from zipmoe.serving.planner import StepLimits, StepPlanner
from zipmoe.serving.speculation import AUTO, OFF, Speculation
from zipmoe.serving.ticket import PageReuse, Ticket

_LOG = structlog.get_logger(__name__)

ANSWER_ROWS, LATENT_ANSWER_ROWS = 16, 2
"""Most rows of an answer in a step: of a preempted answer that is computed again, or the next row and drafted tokens.
With latents the number is smaller, since every row expands all latents of its context anew."""

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
        digest: str,
        probe: ProbeResult,
        state_requests: int | None = None,
    ) -> None:
        """Keeps the settings that `make` uses.

        Args:
            config: settings of the router.
            metrics: series of the router.
            tokenizer: turns tokens into text.
            digest: digest of the store's manifest.
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
        self._digest = digest

    def make(self, built: BuiltModel, linears: Linears | None, experts: StepExperts) -> Stepper:
        """Makes a stepper and allocates its KV cache.

        Args:
            built: the model.
            linears: the linears that the model was built with; None on a GPU.
            experts: the model's expert provider; the stepper tells it of every pass.
        """
        model, answer_rows = self._model(built, linears)
        limits = StepLimits(
            max_running=min(self._config.max_running, self._state_requests or self._config.max_running),
            max_waiting=self._config.max_waiting,
            max_waiting_tokens=self._config.max_waiting_tokens,
            answer_rows=answer_rows,
            group_rows=max(GROUPED * self._config.prefill_rows, self._config.max_prompt_tokens),
        )
        planner = StepPlanner(PageLedger(model.page_count), limits)
        stock = StockGeneration(built.model, built.generation_config)

        def begin(request: Request, ticket: Ticket) -> Generation:
            return Generation(request, ticket, self._tokenizer, stock)

        speculation = self._speculation(built, answer_rows, model.mtp if isinstance(model, SharedPasses) else None)
        return Stepper(model, planner, experts, self._metrics, begin, speculation)

    def _speculation(self, built: BuiltModel, answer_rows: int, mtp: MtpDrafts | None) -> Speculation:
        mode, reason = self._draft_mode(built, answer_rows)
        _LOG.info("speculation", setting=self._config.speculate, on=mode != OFF, reason=reason, mtp=mtp is not None)
        return Speculation(mode, answer_rows, mtp)

    def _draft_mode(self, built: BuiltModel, answer_rows: int) -> tuple[int, str]:
        """Decides whether drafted tokens are verified: only where a row has its own bits among any others.

        Returns:
            The mode of the `Speculation`, and the reason why it is not that of the settings.
        """
        mode = {"auto": AUTO, "off": OFF}.get(str(self._config.speculate), self._config.speculate)
        assert isinstance(mode, int)
        if mode != OFF and answer_rows == 1:
            return OFF, "a pass has one row of each request"
        if mode != OFF and built.placement.device.type != "cpu":
            return OFF, "bits of a row may depend on the other rows of a pass on this device"
        return mode, ""

    def check(self, built: BuiltModel, stepper: Stepper, experts: StepExperts) -> None:
        """Compares the passes of `make` with stock's, unless that was done before.

        Where bits differ, requests run in turn.

        Args:
            built: the model.
            stepper: the result of `make`, without requests.
            experts: the model's expert provider.

        Thread: the model thread.
        """
        config = self._config
        if config.start_check == "off" or self.path is ComputePath.IN_TURN or built.placement.device.type != "cpu":
            return
        if config.trace is not None:
            _LOG.info("start_check_left_out", reason="a trace records the passes of requests alone")
            return
        forms = sorted(built.dense_forms.counts)
        note = self._note("start", self.path.value, config.kv_cache, config.row_pass, stepper.drafts, forms)
        if note.read() is not None:
            return
        begin_s = time.monotonic()
        result = check_start(built, stepper.model, experts, drafted=stepper.drafts)
        elapsed_s = round(time.monotonic() - begin_s, 3)
        log = _LOG.error if result.difference else _LOG.info
        log("start_checked", path=self.path.value, elapsed_s=elapsed_s, **result._asdict())
        if not result.difference:
            if not result.unfinished or result.late:
                note.keep(result.unfinished)
            return
        model = JoinedModel(built)
        in_turn = JoinedPasses(model, stepper.model.page_count, config.prefill_rows, together=False)
        stepper.replace_model(in_turn)
        self._tell_recorded(RowReport(self.recorded.layers, "requests run in turn"))
        self._tell(ComputePath.IN_TURN, f"{result.difference}, in the check at the start")

    def _model(self, built: BuiltModel, linears: Linears | None) -> tuple[StepModel, int]:
        pages = cache_tokens(self._config, built) // PAGE_TOKENS
        reason = self._probe.reason
        if built.encoder_decoder:
            # The budget counts self-attention and cross-attention for every token (`kv_bytes_per_token`), but a
            # token of prompt or answer takes only one of the two.
            pages *= 2
        if self._probe.path is ComputePath.SHARED:
            try:
                if built.encoder_decoder:
                    return self._side_by_side(built, linears, pages), 1
                return self._shared(built, linears, pages)
            except UnsupportedModel as error:  # what the device lacks, the probe of the model cannot know
                reason = error.message
        together = self._probe.path is not ComputePath.IN_TURN
        path = ComputePath.JOINED if together else ComputePath.IN_TURN
        self._tell(path, reason)
        return JoinedPasses(JoinedModel(built), pages, self._config.prefill_rows, together=together), 1

    def _side_by_side(self, built: BuiltModel, linears: Linears | None, pages: int) -> SideBySidePasses:
        side_by_side = SideBySide(built, linears)
        self._tell(ComputePath.SHARED, "")
        return SideBySidePasses(JoinedModel(built), side_by_side, pages, self._config.prefill_rows)

    def _shared(self, built: BuiltModel, linears: Linears | None, pages: int) -> tuple[SharedPasses, int]:
        ragged = RaggedModel(built, linears, pages, self._config.kv_cache)
        latent = ragged.pool.layout.latent
        if latent and self._config.kv_cache == "expanded":
            _LOG.info("latents_kept", reason="the bits of an expansion may depend on how many rows there are")
        rows = LATENT_ANSWER_ROWS if latent else ANSWER_ROWS
        _LOG.info("kv_pool", pages=pages, page_tokens=PAGE_TOKENS, bytes=ragged.pool.nbytes, latent=latent)
        self._tell(ComputePath.SHARED, "")
        self._record(ragged)
        reuse = self._page_reuse(built)
        drafts = self._draft_mode(built, rows)[0] != OFF
        mtp = MtpDrafts(ragged.mtp) if drafts and ragged.mtp is not None else None
        adopts_any = self._config.reuse_answers
        return SharedPasses(ragged, self._config.prefill_rows, reuse, adopts_any=adopts_any, mtp=mtp), rows

    def _page_reuse(self, built: BuiltModel) -> PageReuse:
        """Finds out and logs which pages a prompt may adopt; on a GPU bits are not compared."""
        begin_s = time.monotonic()
        reuse = PageReuse.PROMPTS
        if built.placement.device.type == "cpu":
            most_tokens = min(built.context_tokens, cache_tokens(self._config, built))
            note = self._note("page_reuse", most_tokens)
            kept = note.read()
            if kept in {each.value for each in PageReuse}:
                reuse = PageReuse(kept)
            else:
                reuse = page_reuse(built, most_tokens)
                note.keep(reuse.value)
        elapsed_s = round(time.monotonic() - begin_s, 3)
        _LOG.info("page_reuse", exact=reuse.value, adopts_any=self._config.reuse_answers, elapsed_s=elapsed_s)
        return reuse

    def _note(self, kind: str, *settings: object) -> KeptNote:
        return KeptNote(kind, self._digest, self._config.linear, torch.get_num_threads(), *settings)

    def _record(self, ragged: RaggedModel) -> None:
        """Records the pass of one row, unless the settings say eager, and logs what is replayed."""
        if self._config.row_pass == "auto":
            report = ragged.record_row()
        else:
            report = RowReport(ragged.layer_count, "the setting --pass eager")
        self._tell_recorded(report)
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

    def _tell_recorded(self, report: RowReport) -> None:
        """Exports what is replayed, and keeps it for `GetModel`."""
        self.recorded = report
        for state, count in (
            ("recorded", report.recorded_layers),
            ("eager", report.layers - report.recorded_layers),
        ):
            self._metrics.recorded_layers.labels(state).set(count)
        self._metrics.torch_operations.set(report.torch_operations)

    def _tell(self, path: ComputePath, reason: str) -> None:
        """Logs and exports the path, and keeps it with its reason for `GetModel`."""
        self.path, self.reason = path, reason
        for each in ComputePath:
            self._metrics.compute_path.labels(each.value).set(int(each is path))
        _LOG.info("compute_path", path=path.value, reason=reason, lazy=self._probe.lazy)
