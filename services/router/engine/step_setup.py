"""From a router's settings to the object that runs its steps."""

from __future__ import annotations

import structlog

from zipmoe.errors import UnsupportedModel
from zipmoe.model.build.build import BuiltModel
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.passes.ragged import RaggedModel
from zipmoe.model.passes.side_by_side import SideBySide
from zipmoe.model.text.tokenizer import Tokenizer
from zipmoe.services.router.config import RouterConfig
from zipmoe.services.router.engine.generation import Generation
from zipmoe.services.router.engine.passes import NoListener, StepListener, StepModel
from zipmoe.services.router.engine.request import Request
from zipmoe.services.router.engine.sequence_passes import SequencePasses, SideBySidePasses
from zipmoe.services.router.engine.shared_passes import SharedPasses
from zipmoe.services.router.engine.stepper import StepExperts, Stepper
from zipmoe.services.router.metrics import RouterMetrics
from zipmoe.serving.pages import PAGE_TOKENS, PageLedger
from zipmoe.serving.planner import StepLimits, StepPlanner
from zipmoe.serving.ticket import Ticket

_LOG = structlog.get_logger(__name__)

REPLAY_ROWS, LATENT_REPLAY_ROWS = 16, 2
"""Rows of a given-up answer that are computed again in a step. Latents are expanded anew for each, all of them."""

GROUPED = 2
"""So many times the prompt tokens of a step may begin together: what they read serves all of them, and what is kept of
each token between layers is a hundredth of its keys and values."""


def cache_tokens(config: RouterConfig, model: BuiltModel) -> int:
    """Tokens of the longest sequence that the cache holds, in whole pages; for an encoder-decoder, of either."""
    if model.encoder_decoder:
        return config.kv_tokens
    return config.kv_tokens // PAGE_TOKENS * PAGE_TOKENS


class StepSetup:
    """Makes the stepper of a router."""

    def __init__(self, config: RouterConfig, metrics: RouterMetrics, tokenizer: Tokenizer) -> None:
        """Remembers what every stepper needs."""
        self._config = config
        self._metrics = metrics
        self._tokenizer = tokenizer

    def make(self, built: BuiltModel, linears: Linears | None, experts: StepExperts) -> Stepper:
        """Makes a stepper and takes the memory of its cache.

        Args:
            built: the model.
            linears: by which it was built; None on a GPU.
            experts: supplies it; told of every pass if it listens.
        """
        listener = experts if isinstance(experts, StepListener) else NoListener()
        model, replay_rows = self._model(built, linears, listener)
        limits = StepLimits(
            max_running=self._config.max_running,
            max_waiting=self._config.max_waiting,
            max_waiting_tokens=self._config.max_waiting_tokens,
            replay_rows=replay_rows,
            group_rows=max(GROUPED * self._config.prefill_rows, self._config.max_prompt_tokens),
        )
        planner = StepPlanner(PageLedger(model.page_count), limits)

        def begin(request: Request, ticket: Ticket) -> Generation:
            return Generation(request, ticket, self._tokenizer, prompt_is_context=not built.encoder_decoder)

        return Stepper(model, planner, experts, self._metrics, begin)

    def _model(self, built: BuiltModel, linears: Linears | None, listener: StepListener) -> tuple[StepModel, int]:
        pages = cache_tokens(self._config, built) // PAGE_TOKENS
        try:
            if built.encoder_decoder:
                # A token of prompt or answer takes half of what the budget reckons with: see `kv_bytes_per_token`.
                pages *= 2
                return SideBySidePasses(built, SideBySide(built, linears), pages, listener), 1
            ragged = RaggedModel(built, linears, pages, self._config.kv_cache)
        except UnsupportedModel as reason:
            _LOG.warning("requests_in_turn", reason=reason.message, effect="requests do not share passes")
            return SequencePasses(built, pages, listener), 1
        latent = ragged.pool.layout.latent
        if latent and self._config.kv_cache == "expanded":
            _LOG.info("latents_kept", reason="the bits of an expansion may depend on how many rows there are")
        rows = LATENT_REPLAY_ROWS if latent else REPLAY_ROWS
        _LOG.info("kv_pool", pages=pages, page_tokens=PAGE_TOKENS, bytes=ragged.pool.nbytes, latent=latent)
        return SharedPasses(ragged, self._config.prefill_rows, listener), rows
