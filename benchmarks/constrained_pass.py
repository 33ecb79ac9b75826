"""Time per token of answers that follow a JSON schema, beside answers that follow none, in real passes.

    python -m benchmarks.constrained_pass [--layers 4] [--experts 16] [--sizes 4000,150000] [--rounds 8]
    python -m benchmarks.constrained_pass --built-in

The first runs the model of `benchmarks.recorded_pass` with everything resident and no processes around it, so that its
passes are as short as they get; its times are processor times of one thread. The vocabulary of 4,000 is the built-in
model's tokenizer, larger ones are those of `benchmarks.constrained`. The second serves the built-in model with `zipmoe
up`; its times are those that a client is told. The schema is that of an order: texts, enumerations, numbers, a list of
records. Answers are drawn at temperature 0.8. `one row` computes a pass for each token, `shared` lets tokens share a
pass where the mask leaves exactly one. Answers with and without a schema take turns.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from zipmoe.model.numerics import prepare_environment

prepare_environment()

import torch  # noqa: E402
from prometheus_client import CollectorRegistry  # noqa: E402

from benchmarks.constrained import BUILT_IN, BUILT_IN_SIZE, random_tokenizer  # noqa: E402
from benchmarks.lm_eval_scores import served  # noqa: E402
from benchmarks.recorded_pass import build  # noqa: E402
from benchmarks.speculation import _StepCount as StepCount  # noqa: E402
from zipmoe.client import Constraint, GenerationClient, Sampling, Stopping, complete  # noqa: E402
from zipmoe.model.checkpoint.catalogue import catalogue  # noqa: E402
from zipmoe.model.passes.ragged import RaggedModel  # noqa: E402
from zipmoe.model.stock.generation_settings import StockGeneration  # noqa: E402
from zipmoe.model.text import grammar_source  # noqa: E402
from zipmoe.model.text.grammar import Grammar, GrammarVocabulary  # noqa: E402
from zipmoe.model.text.sampling import SamplingParams  # noqa: E402
from zipmoe.model.text.tokenizer import Tokenizer  # noqa: E402
from zipmoe.process.heap import keep_freed_memory  # noqa: E402
from zipmoe.services.router.engine.generation import Generation  # noqa: E402
from zipmoe.services.router.engine.request import (  # noqa: E402
    Event,
    GenerationSpec,
    Request,
    RequestFinished,
    RequestToken,
)
from zipmoe.services.router.engine.shared_passes import SharedPasses  # noqa: E402
from zipmoe.services.router.engine.stepper import Stepper  # noqa: E402
from zipmoe.services.router.metrics import RouterMetrics  # noqa: E402
from zipmoe.serving.pages import PageLedger, pages_of  # noqa: E402
from zipmoe.serving.planner import StepLimits, StepPlanner  # noqa: E402
from zipmoe.serving.speculation import OFF, Speculation  # noqa: E402
from zipmoe.serving.ticket import PageReuse  # noqa: E402
from zipmoe.store.pack.writer import pack_store  # noqa: E402

TOKENS, PROMPT_TOKENS, ROWS, FEWEST_TOKENS = 120, 64, 16, 40
TEMPERATURE: Final = 0.8
_LINE: Final = {
    "type": "object",
    "properties": {
        "article": {"type": "string", "maxLength": 60},
        "count": {"type": "integer", "minimum": 1, "maximum": 999},
        "price": {"type": "number"},
        "unit": {"enum": ["piece", "kilogram", "metre", "litre"]},
    },
    "required": ["article", "count", "price", "unit"],
    "additionalProperties": False,
}
SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "customer": {"type": "string", "maxLength": 120},
        "status": {"enum": ["open", "paid", "sent", "returned"]},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "minItems": 3, "maxItems": 20},
        "remark": {"type": "string", "maxLength": 400},
    },
    "required": ["customer", "status", "lines", "remark"],
    "additionalProperties": False,
    "$defs": {"line": _LINE},
    "x-guidance": {"whitespace_flexible": False},
}

Answer = Callable[[int], tuple[float, int]]
"""Gives the answer of a seed: seconds from the first token to the last, and the number of tokens."""


class ConstrainedServer:
    """A stepper over a model whose experts are resident."""

    def __init__(self, model: RaggedModel, stock: StockGeneration, tokenizer: Tokenizer, most_drafts: int) -> None:
        passes = SharedPasses(model, 1 << 20, PageReuse.NOTHING, adopts_any=False, mtp=None)
        self._stepper = Stepper(
            passes,
            StepPlanner(PageLedger(model.pool.page_count), StepLimits(1, 1, 1 << 20, ROWS, 1 << 20)),
            StepCount(),
            RouterMetrics(CollectorRegistry()),
            lambda request, ticket: Generation(request, ticket, tokenizer, stock),
            Speculation(most_drafts, ROWS, None),
        )

    def answer(self, grammar: Grammar | None, seed: int) -> tuple[float, int]:
        """Returns processor seconds from the first token to the last, and the number of tokens."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        stops = frozenset() if grammar is None else grammar.eos_ids
        prompt = tuple(range(seed % 7 + 1, seed % 7 + 1 + PROMPT_TOKENS))
        sampling = SamplingParams(temperature=TEMPERATURE, seed=seed)
        spec = GenerationSpec("bench", prompt, sampling, TOKENS, stop_token_ids=stops, grammar=grammar)
        self._stepper.submit(Request(spec, events.put))
        begin_s, tokens = 0.0, 0
        while True:
            self._stepper.step()
            while not events.empty():
                event = events.get()
                if isinstance(event, RequestToken):
                    begin_s, tokens = begin_s or time.process_time(), tokens + 1
                elif isinstance(event, RequestFinished):
                    return time.process_time() - begin_s, tokens


def compare(name: str, free: Answer, bound: Answer, rounds: int) -> None:
    """Prints the times per token of two kinds of answers that take turns; the first of each warms up."""
    times: dict[Answer, list[float]] = {free: [], bound: []}
    tokens = 0
    for number in range(rounds + 1):
        for kind in (free, bound) if number % 2 else (bound, free):
            seconds, count = kind(number)
            if number and count >= FEWEST_TOKENS:
                times[kind].append(seconds * 1e3 / (count - 1))
                tokens += count if kind is bound else 0
    without, with_schema = (statistics.median(times[kind]) for kind in (free, bound))
    print(
        f"{name}: {without:.2f} ms a token without, {with_schema:.2f} ms with the schema "
        f"({(with_schema / without - 1) * 100:+.1f} %; {len(times[bound])} answers, {tokens} tokens)",
        flush=True,
    )


def widths(options: argparse.Namespace, size: int) -> None:
    """Compares on the model of `benchmarks.recorded_pass` with a vocabulary of `size`."""
    options.vocab = size
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer(BUILT_IN) if size == BUILT_IN_SIZE else random_tokenizer(size, Path(folder))
        built, linears = build(Path(folder), options)
    model = RaggedModel(built, linears, pages_of(PROMPT_TOKENS + TOKENS) + 1)
    model.record_row()
    stock = StockGeneration(built.model, built.generation_config)
    vocabulary = GrammarVocabulary(tokenizer, size, {int(tokenizer.backend.eos_token_id)})
    grammar = Grammar(grammar_source.json_schema(json.dumps(SCHEMA)), vocabulary)
    for name, most_drafts in (("one row", OFF), ("shared", ROWS - 1)):
        server = ConstrainedServer(model, stock, tokenizer, most_drafts)
        title = f"{options.layers} layers, vocabulary of {size}, {name}"
        compare(title, partial(server.answer, None), partial(server.answer, grammar), options.rounds)


def built_in(rounds: int) -> None:
    """Compares on the built-in model, served by processes."""

    def ask(client: GenerationClient, constraint: Constraint | None, seed: int) -> tuple[float, int]:
        answer = complete(
            client.generate(
                "And it came to pass",
                sampling=Sampling(temperature=TEMPERATURE, seed=seed),
                stopping=Stopping(max_new_tokens=TOKENS, ignore_eos=constraint is None),
                constraint=constraint,
            )
        )
        usage = answer.usage
        return usage.duration_s - usage.time_to_first_token_s, usage.generated_tokens

    with tempfile.TemporaryDirectory(prefix="con") as name:
        folder = Path(name)
        pack_store(catalogue(BUILT_IN), folder / "store")
        with served(folder / "store", folder / "r"), GenerationClient(f"unix:{folder / 'r' / 'router.sock'}") as client:
            constraint = Constraint(json_schema=SCHEMA)
            compare("built-in model", partial(ask, client, None), partial(ask, client, constraint), rounds)


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", default="qwen2_moe")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--form", choices=("packed", "bf16"), default="packed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", default="4000,150000")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--built-in", action="store_true")
    options = parser.parse_args()
    if options.built_in:
        built_in(options.rounds)
        return
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    for size in map(int, options.sizes.split(",")):
        widths(options, size)


if __name__ == "__main__":
    main()
