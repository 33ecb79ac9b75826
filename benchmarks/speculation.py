"""Decode steps of one request with drafted tokens, beside steps without, with everything resident.

    python -m benchmarks.speculation [--layers 8] [--experts 60] [--settings off,auto,7] [--tokens 96] [--rounds 5]

The model is that of `benchmarks.recorded_pass`. Its answers are forced, so that the share of accepted drafts is known:
`quote` repeats a passage of the prompt, `partly` breaks the passage by another token after every few tokens, `random`
repeats nothing. Settings take turns in each round. The log-probabilities of all settings are compared.

`--mtp SHARE` (with `--model-type glm4_moe`) also computes layers for multi-token prediction. Those of random weights
draft nothing that comes true, so their drafts are replaced by the tokens to come, each with the probability SHARE.
"""

from __future__ import annotations

import argparse
import queue
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from zipmoe.model.numerics import prepare_environment

prepare_environment()

import torch  # noqa: E402
from prometheus_client import CollectorRegistry  # noqa: E402

from benchmarks.recorded_pass import WIDTHS, build  # noqa: E402
from zipmoe.errors import InvalidRequest  # noqa: E402
from zipmoe.model.passes.mtp_layers import MtpLayers  # noqa: E402
from zipmoe.model.passes.ragged import RaggedModel  # noqa: E402
from zipmoe.model.stock.generation_settings import StockGeneration  # noqa: E402
from zipmoe.model.text.sampling import SamplingParams  # noqa: E402
from zipmoe.model.text.token_ids_only import TokenIdsOnly  # noqa: E402
from zipmoe.process.heap import keep_freed_memory  # noqa: E402
from zipmoe.residency.pools import Phase  # noqa: E402
from zipmoe.services.router.deadlines import Deadlines  # noqa: E402
from zipmoe.services.router.engine.generation import Generation  # noqa: E402
from zipmoe.services.router.engine.mtp_drafts import MtpDrafts  # noqa: E402
from zipmoe.services.router.engine.request import (  # noqa: E402
    Event,
    GenerationSpec,
    Request,
    RequestFinished,
    RequestToken,
)
from zipmoe.services.router.engine.shared_passes import SharedPasses  # noqa: E402
from zipmoe.services.router.engine.stepper import Stepper  # noqa: E402
from zipmoe.services.router.experts.read_account import ExpertUsage  # noqa: E402
from zipmoe.services.router.metrics import RouterMetrics  # noqa: E402
from zipmoe.serving.drafts import Draft, Drafts  # noqa: E402
from zipmoe.serving.pages import PageLedger, pages_of  # noqa: E402
from zipmoe.serving.planner import StepLimits, StepPlanner  # noqa: E402
from zipmoe.serving.speculation import AUTO, OFF, Speculation  # noqa: E402
from zipmoe.serving.ticket import PageReuse, Ticket  # noqa: E402

PROMPT_TOKENS = 256


class _StepCount:
    """Stands in for the provider that the engine tells of passes."""

    def __init__(self) -> None:
        self.usage = ExpertUsage()
        self.passes = 0

    def step(self, phase: Phase, tokens: int, deadlines: Deadlines) -> None:
        self.passes += phase is Phase.DECODE


class _AssumedDrafts(MtpDrafts):
    """Computes the layers, and drafts the forced tokens, each with a given probability."""

    def __init__(self, layers: MtpLayers, share: float) -> None:
        super().__init__(layers)
        self.forced: list[int] = []
        self.seconds: list[float] = []
        self._share = share
        self._draw = random.Random(7)

    def draft(self, tickets: Sequence[Ticket], most: Sequence[int]) -> Drafts:
        found = super().draft(tickets, most)
        if found.seconds is not None:
            self.seconds.append(found.seconds / max(most))
        drafts = []
        for ticket, draft in zip(tickets, found.drafts, strict=True):
            begin = len(ticket.tokens) - ticket.prompt_tokens
            true = self.forced[begin : begin + len(draft.tokens)]
            drafts.append(Draft(tuple(each if self._draw.random() < self._share else 0 for each in true)))
        return Drafts(drafts, found.seconds)


class SpeculatingServer:
    """A stepper over a model, with one setting of the speculation that learns over all rounds."""

    def __init__(
        self, model: RaggedModel, stock: StockGeneration, most_drafts: int, rows: int, share: float | None
    ) -> None:
        self.experts = _StepCount()
        self.mtp = None
        if share is not None and model.mtp is not None and most_drafts != OFF:
            self.mtp = _AssumedDrafts(model.mtp, share)
        passes = SharedPasses(model, 1 << 20, PageReuse.NOTHING, adopts_any=False, mtp=self.mtp)
        planner = StepPlanner(PageLedger(model.pool.page_count), StepLimits(1, 1, 1 << 20, rows, 1 << 20))
        self._stepper = Stepper(
            passes,
            planner,
            self.experts,
            RouterMetrics(CollectorRegistry()),
            lambda request, ticket: Generation(request, ticket, TokenIdsOnly(InvalidRequest("token ids only")), stock),
            Speculation(most_drafts, rows, self.mtp),
        )

    def answer(self, prompt: list[int], forced: list[int]) -> tuple[float, int, list[float | None]]:
        """Returns seconds from the first token to the last, passes between them, and log-probabilities."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        spec = GenerationSpec(
            "bench",
            tuple(prompt),
            SamplingParams(temperature=0.0),
            len(forced),
            top_logprobs=0,
            forced_token_ids=tuple(forced),
        )
        if self.mtp is not None:
            self.mtp.forced = forced
        self._stepper.submit(Request(spec, events.put))
        logprobs: list[float | None] = []
        begin_s = 0.0
        before = self.experts.passes
        while True:
            self._stepper.step()
            while not events.empty():
                event = events.get()
                if isinstance(event, RequestToken):
                    begin_s = begin_s or time.perf_counter()
                    logprobs.append(event.choice.logprob)
                elif isinstance(event, RequestFinished):
                    return time.perf_counter() - begin_s, self.experts.passes - before, logprobs


def answers(kind: str, prompt: list[int], count: int, every: int, vocabulary: int, draw: random.Random) -> list[int]:
    """Returns the tokens that are forced."""
    if kind == "random":
        return [draw.randrange(vocabulary) for _ in range(count)]
    start = draw.randrange(len(prompt) - count)
    passage = prompt[start : start + count]
    if kind == "partly":
        passage[::every] = [draw.randrange(vocabulary) for _ in passage[::every]]
    return passage


def _draft_time(server: SpeculatingServer) -> str:
    if server.mtp is None or not server.mtp.seconds:
        return ""
    return f", {statistics.median(server.mtp.seconds) * 1e3:.2f} ms a token drafted by MTP layers"


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", choices=tuple(WIDTHS), default="qwen2_moe")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=60)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--form", choices=("packed", "bf16"), default="packed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--settings", default="off,auto,3,7,15")
    parser.add_argument("--kinds", default="quote,partly,random")
    parser.add_argument("--every", type=int, default=6, help="tokens of `partly` from one other token to the next")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mtp", type=float, metavar="SHARE", help="share of true drafts by MTP layers")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        built, linears = build(Path(folder), options, mtp=options.mtp is not None)
    model = RaggedModel(built, linears, pages_of(PROMPT_TOKENS + options.tokens) + 1)
    model.record_row()
    stock = StockGeneration(built.model, built.generation_config)
    settings: Mapping[str, int] = {
        name: {"off": OFF, "auto": AUTO}.get(name) or int(name if name.isdigit() else 0)
        for name in options.settings.split(",")
    }
    for kind in options.kinds.split(","):
        servers = {
            name: SpeculatingServer(model, stock, most, options.rows, options.mtp) for name, most in settings.items()
        }
        draw = random.Random(5)
        spent: dict[str, list[float]] = {name: [] for name in settings}
        passes: dict[str, list[float]] = {name: [] for name in settings}
        for number in range(options.rounds + 1):
            prompt = [draw.randrange(options.vocab) for _ in range(PROMPT_TOKENS)]
            forced = answers(kind, prompt, options.tokens, options.every, options.vocab, draw)
            found = {}
            for name in sorted(settings, reverse=number % 2 == 1):
                seconds, count, found[name] = servers[name].answer(prompt, forced)
                if number:  # the first round warms up
                    spent[name].append(seconds * 1e3 / (options.tokens - 1))
                    passes[name].append((options.tokens - 1) / count)
            assert all(each == found["off"] for each in found.values()), "log-probabilities differ"
        for name in settings:
            ratios = sorted(a / b for a, b in zip(spent[name], spent["off"], strict=True))
            print(
                f"{kind:7} {name:5} {statistics.median(spent[name]):7.2f} ms a token, "
                f"{statistics.median(passes[name]):5.2f} tokens a pass, over off {statistics.median(ratios):.3f} "
                f"({ratios[0]:.3f}-{ratios[-1]:.3f})" + _draft_time(servers[name]),
                flush=True,
            )


if __name__ == "__main__":
    main()
