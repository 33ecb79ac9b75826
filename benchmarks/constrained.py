"""Processor time that grammars add to a token, by size of the vocabulary: masks, choices of tokens, compilation.

    python -m benchmarks.constrained [--sizes 4000,150000] [--tokens 400]

The vocabulary of 4,000 is the built-in model's, larger ones are random byte-level BPE. Logits are random, and so are
the answers; each answer of a grammar is chosen with its mask and, from the same logits, without. `trial` is the process
that compiles a grammar first, beside single bytes as tokens. Times are processor times of one thread, but for `trial`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import LogitsProcessorList, PreTrainedTokenizerFast, TemperatureLogitsWarper

from zipmoe.model.stock.generation_settings import ChoiceRules
from zipmoe.model.text import grammar_source
from zipmoe.model.text.call_forms import HERMES
from zipmoe.model.text.grammar import Grammar, GrammarProgress, GrammarVocabulary
from zipmoe.model.text.grammar_mask import GrammarMask
from zipmoe.model.text.grammar_source import GrammarSource
from zipmoe.model.text.sampling import Sampler
from zipmoe.model.text.tokenizer import Tokenizer
from zipmoe.model.text.tool_grammar import DemandedCalls, ToolSchema, tool_calls
from zipmoe.services.router.engine.grammars import try_grammar

BUILT_IN = Path(__file__).parents[1] / "demo" / "model"
BUILT_IN_SIZE = 4000
EOS = "<eos>"


def random_tokenizer(size: int, folder: Path) -> Tokenizer:
    """Makes a byte-level BPE tokenizer with random merges of what JSON and English are written with."""
    generator = random.Random(size)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*'etaoinshrdlucmfwypvbgkjqxzETAOINSHR0123456789"{}[]:,._-', *("Ġ" * 6)]
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    grown, merges = list(letters), []
    while len(vocabulary) < size - 1:
        left, right = generator.choice(grown), generator.choice(letters)
        if len(left) < 12 and left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            grown.append(left + right)
            merges.append((left, right))
    raw = RawTokenizer(models.BPE(vocabulary, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=EOS).save_pretrained(folder)
    return Tokenizer(folder)


def large_schema() -> dict[str, object]:
    """Returns a schema of about 60 kB: 40 kinds of records with 20 fields each, strings, numbers and references."""
    field: list[object] = [
        {"type": "string", "maxLength": 80},
        {"type": "integer", "minimum": 0, "maximum": 99999},
        {"enum": [f"value-{number}" for number in range(20)]},
        {"type": "array", "items": {"$ref": "#/$defs/record7"}, "maxItems": 5},
        {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    ]
    records = {
        f"record{number}": {
            "type": "object",
            "properties": {f"field_{number}_{place}": field[(number + place) % len(field)] for place in range(20)},
            "required": [f"field_{number}_{place}" for place in range(10)],
        }
        for number in range(40)
    }
    return {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in records], "$defs": records}


def sources(vocabulary: GrammarVocabulary) -> Iterator[tuple[str, GrammarSource]]:
    yield "any object", grammar_source.json_object()
    small = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    yield "small schema", grammar_source.json_schema(json.dumps(small))
    schema = json.dumps(large_schema())
    yield f"schema of {len(schema) // 1000} kB", grammar_source.json_schema(schema)
    large = large_schema()
    tools = [ToolSchema(f"tool_{number}", {**large, "anyOf": [large["anyOf"][number]]}) for number in range(1)]  # type: ignore[index]
    yield "one tool of it", tool_calls(DemandedCalls(tools, HERMES), vocabulary.special_tokens)
    yield "regex", grammar_source.regex(r"([A-Z][a-z]{2,9} ){3,30}\.")
    yield "1,000 choices", grammar_source.choice([f"choice number {number}" for number in range(1000)])


class Timed(GrammarProgress):
    """Notes the times of the masks."""

    def __init__(self, grammar: Grammar, seconds: list[float]) -> None:
        super().__init__(grammar)
        self._noted = seconds

    def _mask(self) -> None:
        if not self._masked:
            begin_s = time.thread_time()
            super()._mask()
            self._noted.append(time.thread_time() - begin_s)


def measure(grammar: Grammar, size: int, tokens: int) -> tuple[list[float], list[float], list[float]]:
    """Returns seconds of masks, of choices without them, and of choices with them, look-ahead included."""
    masks: list[float] = []
    plain: list[float] = []
    masked: list[float] = []
    generator = torch.Generator().manual_seed(1)
    seed = 0
    while len(masked) < tokens:
        seed += 1
        progress = Timed(grammar, masks)
        warper = TemperatureLogitsWarper(0.8)
        free = Sampler(ChoiceRules(LogitsProcessorList([warper]), True), seed=seed)
        rules = ChoiceRules(LogitsProcessorList([GrammarMask(progress), warper]), True)
        bound = Sampler(rules, seed=seed, progress=progress)
        while len(masked) < tokens:
            logits = torch.randn(size, generator=generator).bfloat16()
            begin_s = time.thread_time()
            free.choose(logits)
            middle_s = time.thread_time()
            token_id = bound.choose(logits).token_id
            if token_id in grammar.eos_ids:
                break
            progress.certain(15)
            masked.append(time.thread_time() - middle_s)
            plain.append(middle_s - begin_s)
    return masks, plain, masked


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="4000,150000")
    parser.add_argument("--tokens", type=int, default=400, help="tokens for each grammar, of as many answers as needed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = Tokenizer(BUILT_IN) if size == BUILT_IN_SIZE else random_tokenizer(size, Path(folder))
        before, begin_s = resident_bytes(), time.thread_time()
        vocabulary = GrammarVocabulary(tokenizer, size, {int(tokenizer.backend.eos_token_id)})
        took_s, grown = time.thread_time() - begin_s, resident_bytes() - before
        print(f"vocabulary of {size}: read in {took_s:.2f} s, {grown / 1e6:.0f} MB")
        print("grammar | compile ms | trial ms | masks: median, p99, worst us | added to a token: median, mean, p99 us")
        for name, source in sources(vocabulary):
            begin_s = time.thread_time()
            grammar = Grammar(source, vocabulary)
            compile_s = time.thread_time() - begin_s
            begin_s = time.perf_counter()
            try_grammar(source, 60.0)
            trial_s = time.perf_counter() - begin_s
            masks, plain, masked = measure(grammar, size, options.tokens)
            masks.sort()
            added = sorted(with_mask - without for with_mask, without in zip(masked, plain, strict=True))
            shown = [statistics.median(masks), masks[int(len(masks) * 0.99)], masks[-1]]
            costs = [statistics.median(added), statistics.fmean(added), added[int(len(added) * 0.99)]]
            print(
                f"{name} | {compile_s * 1e3:.0f} | {trial_s * 1e3:.0f} | "
                f"{', '.join(f'{each * 1e6:.0f}' for each in shown)} | "
                f"{', '.join(f'{each * 1e6:.0f}' for each in costs)} ({len(masked)} tokens)"
            )


if __name__ == "__main__":
    main()
