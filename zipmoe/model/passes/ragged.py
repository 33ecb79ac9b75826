"""Computes decode steps of many requests on a decoder-only model: all rows go through each layer together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

from zipmoe.errors import UnsupportedModel
from zipmoe.model.attention.kv_pool import KvLayout, KvPlace, KvPool
from zipmoe.model.attention.latent import LatentPass, expands_rows_alike
from zipmoe.model.attention.ragged_attention import RaggedPass, RowSpan, attend_by_heads, ragged_attention
from zipmoe.model.attention.row_attention import RowAttention
from zipmoe.model.build.build import BuiltModel
from zipmoe.model.experts.ffn import DirectFfn
from zipmoe.model.experts.gates import replace_gate_linears
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.linear.native_linear import Linears, SharedRows
from zipmoe.model.passes.mtp_layers import MtpLayers
from zipmoe.model.passes.prompt_pass import PromptPass
from zipmoe.model.passes.prompts_together import PromptsTogether
from zipmoe.model.program.recording.row_model import RowModel
from zipmoe.model.program.replay.row_program import RowProgram
from zipmoe.model.program.report import RowReport
from zipmoe.model.program.start import record_rows
from zipmoe.model.stock.body import hidden_states_of, text_body
from zipmoe.planning.kv_bytes import KvForm
from zipmoe.planning.workspace import LENGTH_DEPENDENT_ROTARY

WORTH_RECORDING, MOST_RECORDED_ROWS = 32, 16
"""Eager passes with some number of rows after which their pass is recorded, and most rows of a recorded pass."""


class BatchRow(NamedTuple):
    """A token of a request, which is one row of a pass.

    Attributes:
        token_id: the token.
        position: position of the token in the request.
        pages: page table of the request, with room for the token.
        chooses: whether the next token is chosen after this row.
    """

    token_id: int
    position: int
    pages: Sequence[int]
    chooses: bool = True


class RaggedModel:
    """Computes rows of any requests together, each with the bits that it has alone, and prompts layer by layer.

    The keys and values of computed tokens are in the pages of the request. After a failed pass the same rows may be
    computed again.

    Thread: one at a time per model.
    """

    def __init__(self, built: BuiltModel, linears: Linears | None, page_count: int, form: KvForm = "expanded") -> None:
        """Prepares a model and allocates the pages.

        Args:
            built: the model.
            linears: the `Linears` of the model. None on a GPU, where rows of different requests share torch's own
                linears.
            page_count: pages of the cache.
            form: cached form of latent attention. On a GPU, and where the bits of an expansion may depend on the number
                of rows, latents are kept whatever the form. Latents take less memory.

        Raises:
            UnsupportedModel: the family cannot share passes; the message says why.
        """
        if built.encoder_decoder:
            raise UnsupportedModel("an encoder-decoder has no ragged passes")
        config = built.config.get_text_config(decoder=True)
        rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rotary in LENGTH_DEPENDENT_ROTARY:
            raise UnsupportedModel(f"{rotary} rotary frequencies depend on the longest request of a pass")
        direct = [each for each in built.experts if isinstance(each, RoutedExperts) and isinstance(each.ffn, DirectFfn)]
        if len(direct) != len(built.experts):
            raise UnsupportedModel("experts that only stock's code computes cannot tell requests apart")
        if linears is None and built.placement.device.type == "cpu":
            raise UnsupportedModel("torch's own linears cannot tell requests apart")
        if linears is None or not expands_rows_alike(built.model, linears):
            form = "latent"
        layout = KvLayout.of(config, form)
        self.layer_count = len(layout.windows)
        """Layers of the model."""
        if built.mtp is not None:
            layout = layout.joined(KvLayout.of(built.mtp.config, form))
        self.pool = KvPool(layout, page_count, built.placement.device)
        self._cache = LatentPass if self.pool.layout.latent else RaggedPass
        self._built = built
        self._body = text_body(built.model)
        self._linears = linears
        self._together = PromptsTogether(built.model, direct)
        self._row_attention = None
        self._experts = tuple(direct)
        self.row_programs: dict[int, RowProgram | None] = {}
        """Recorded passes by number of rows; None where such a pass could not be recorded."""
        self._eager_passes = Counter[int]()
        if linears is not None:
            linears.self_test(replace_gate_linears(built.model, linears))
            self._row_attention = RowAttention(attend_by_heads)
        self.mtp: MtpLayers | None = None
        """The layers for multi-token prediction, if the store holds them."""
        if built.mtp is not None:
            self.mtp = MtpLayers(built.mtp, self.pool, self._cache, linears, self._row_attention)

    def record_row(self) -> RowReport:
        """Records and proves the pass of one row. From then on `compute` replays the recording for single rows.

        The pool has to be unused.
        """
        return self.record_rows(1, range(self.pool.page_count))

    @property
    def rows_to_record(self) -> int:
        """A number of rows whose pass is worth recording, since it has often been computed eagerly; 0 if none is."""
        if self.row_programs.get(1) is None:
            return 0
        worth = (rows for rows, passes in self._eager_passes.items() if passes >= WORTH_RECORDING)
        return next((rows for rows in worth if rows <= MOST_RECORDED_ROWS and rows not in self.row_programs), 0)

    def record_rows(self, rows: int, pages: Sequence[int]) -> RowReport:
        """Records and proves the pass of some rows, which `compute` then replays.

        Args:
            rows: number of rows.
            pages: `proof_pages(rows)` pages that nobody uses.
        """
        layers = self.layer_count
        if self._linears is None or self._row_attention is None:
            return RowReport(layers, "only passes on the CPU are recorded")
        if self.pool.layout.latent:
            return RowReport(layers, "cached latents are expanded anew for every row")
        body, linears = self._body, self._linears
        model = RowModel(self._built, body, self._experts, linears, self.pool, self._row_attention)
        self.row_programs[rows], report = record_rows(model, rows, pages)
        return report

    def compute(
        self, rows: Sequence[BatchRow], hidden_states: list[torch.Tensor] | None = None
    ) -> list[torch.Tensor | None]:
        """Computes the rows of a pass; several rows may follow one another in the same request.

        Args:
            rows: at least one row.
            hidden_states: receives the output of the model's body for each row, bf16, shape (hidden,). Only in a model
                with layers for multi-token prediction.

        Returns:
            For each row that chooses, the logits after the row, bf16, shape (vocabulary,); None for the other rows.

        Raises:
            ZipMoeError: error of the provider.
        """
        if (program := self.row_programs.get(len(rows))) is not None:
            logits = program.compute(rows)
            if logits is not None:
                if hidden_states is not None:
                    hidden_states.extend(program.hidden_states)
                return [logits[index] if row.chooses else None for index, row in enumerate(rows)]
        self._eager_passes[len(rows)] += 1
        return self.compute_eagerly(rows, hidden_states)

    def compute_eagerly(
        self, rows: Sequence[BatchRow], hidden_states: list[torch.Tensor] | None = None
    ) -> list[torch.Tensor | None]:
        """Computes rows as `compute` does, always by stock's modules."""
        device = self.pool.device
        spans = [RowSpan(1, KvPlace(row.pages, row.position + 1, device), row.position + 1) for row in rows]
        slots = self._slots([(row.pages, row.position) for row in rows])
        ragged = self._cache(self.pool, spans, slots, self._row_attention)
        choosing = [index for index, row in enumerate(rows) if row.chooses]
        shared = SharedRows(tuple(span.tokens for span in spans) if self.pool.layout.latent else ())
        context = nullcontext() if self._linears is None or len(rows) == 1 else self._linears.shared_by(shared)
        none: AbstractContextManager[list[torch.Tensor]] = nullcontext([])
        seeing = none if hidden_states is None else hidden_states_of(self._built.model)
        with torch.inference_mode(), ragged_attention(self._body), context, seeing as seen:
            logits = self._built.model(
                input_ids=torch.tensor([[row.token_id for row in rows]], device=device),
                position_ids=torch.tensor([[row.position for row in rows]], device=device),
                past_key_values=ragged,
                ragged=ragged,
                logits_to_keep=torch.tensor(choosing or [0], device=device),
                use_cache=True,
                return_dict=True,
            ).logits[0]
        if hidden_states is not None:
            hidden_states.extend(seen[0][0])
        chosen = dict(zip(choosing, logits, strict=False))
        return [chosen.get(index) for index in range(len(rows))]

    def prompt(
        self, token_ids: Sequence[int], begin: int, pages: Sequence[int], *, scored: int | None = None
    ) -> PromptPass:
        """Prepares the pass of a prompt, or of the rest of a prompt.

        Args:
            token_ids: tokens to compute, at least one.
            begin: position of the first token; all tokens before are in the pages.
            pages: page table of the request, with room for all tokens.
            scored: likeliest tokens to report beside each token's log-probability; None scores nothing.
        """
        end = begin + len(token_ids)
        span = RowSpan(len(token_ids), KvPlace(pages, end, self.pool.device), end)
        slots = self._slots([(pages, position) for position in range(begin, end)])
        return PromptPass(self._built.model, token_ids, begin, self._cache(self.pool, [span], slots), scored=scored)

    def advance(self, prompts: Sequence[PromptPass], layers: int) -> None:
        """Computes the next layers of several prompts, as `PromptsTogether` does."""
        self._together.advance(prompts, layers)

    def _slots(self, places: Sequence[tuple[Sequence[int], int]]) -> torch.Tensor:
        return torch.tensor([self.pool.slot(*place) for place in places], device=self.pool.device)
