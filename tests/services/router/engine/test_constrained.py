"""Constrained answers are those of stock's `generate` with a processor of the same masks."""

from __future__ import annotations

import pytest

from tests.model.conftest import TwinOf
from tests.model.text.small_vocabulary import EOS, StockMask, stock_constrained, tokenizer_in
from tests.model.tiny import VOCABULARY
from tests.services.router.engine.test_engine import prompt
from tests.services.router.serving import Client, ServingEngine
from zipmoe.errors import InvalidRequest
from zipmoe.model.text import grammar_source
from zipmoe.model.text.grammar import Grammar, GrammarVocabulary
from zipmoe.model.text.sampling import SamplingParams
from zipmoe.model.text.tokenizer import Tokenizer
from zipmoe.services.router.engine.request import EndReason, RequestFinished

SCHEMA = grammar_source.json_schema(
    '{"type":"object","properties":{"alpha":{"type":"boolean"},"beta":{"enum":["ta","be"]}},'
    '"required":["alpha","beta"],"additionalProperties":false,"x-guidance":{"whitespace_flexible":false}}'
)
"""Most of the text is the only one."""

SOURCES = {
    "schema": SCHEMA,
    "object": grammar_source.json_object(),
    "regex": grammar_source.regex(r"[a-f]{2,9}(true|false)?\."),
    "choice": grammar_source.choice(["alphabet", "alpha", "tata"]),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_in(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> GrammarVocabulary:
    return GrammarVocabulary(tokenizer, VOCABULARY, {eos_of(tokenizer)})


def eos_of(tokenizer: Tokenizer) -> int:
    return int(tokenizer.backend.convert_tokens_to_ids(EOS))


def finished(client: Client) -> RequestFinished:
    last = client.seen[-1]
    assert isinstance(last, RequestFinished)
    return last


@pytest.mark.parametrize(
    ("family", "kind", "speculate"),
    [
        *(("qwen2_moe", kind, speculate) for kind in SOURCES for speculate in ("off", 15)),
        *(("deepseek_v2", "schema", speculate) for speculate in ("off", "auto")),
        ("granitemoehybrid", "schema", "auto"),
        ("switch_transformers", "object", "auto"),
    ],
)
def test_constrained_answers_are_those_of_stock_under_the_same_masks(
    family: str, kind: str, speculate: object, twin_of: TwinOf, tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    """Over pages, pages of latents, a cache for each request, and an encoder-decoder."""
    twin, source, eos = twin_of(family), SOURCES[kind], eos_of(tokenizer)
    grammar = Grammar(source, vocabulary)
    cases = [(SamplingParams(temperature=0.0, repetition_penalty=1.3), {"do_sample": False, "repetition_penalty": 1.3})]
    for seed in range(2):
        drawn = {"temperature": 1.4, "top_k": 9, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1}
        cases.append((SamplingParams(**drawn, seed=seed), {"do_sample": True, **drawn}))  # type: ignore[arg-type]
    with ServingEngine(twin, speculate=speculate) as serving:
        for number, (sampling, settings) in enumerate(cases):
            ids = prompt(12, number)
            start = 1 if family == "switch_transformers" else len(ids)
            mask = StockMask(vocabulary.tokenizer, source, start)
            seed = sampling.seed or 0
            wanted = stock_constrained(twin.stock, mask, ids, 40, eos, seed, **settings)
            client = serving.ask(ids, 40, sampling=sampling, grammar=grammar, stop_token_ids=frozenset({eos}))
            assert client.answer() == wanted
            complete = wanted[-1][0] == eos
            assert finished(client).reason is (EndReason.STOP if complete else EndReason.LENGTH)
            assert [token for token, _ in wanted].count(eos) == int(complete)
            if kind == "schema":
                assert sum(len(left) == 1 for left in mask.allowed) > len(mask.allowed) / 2


def test_tokens_that_are_the_only_ones_share_a_pass(
    twin_of: TwinOf, tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    eos = eos_of(tokenizer)
    passes, answers = {}, {}
    for speculate in ("off", 15):
        with ServingEngine(twin_of("qwen2_moe"), speculate=speculate) as serving:
            client = serving.ask(prompt(12), 60, grammar=Grammar(SCHEMA, vocabulary), stop_token_ids=frozenset({eos}))
            answers[speculate] = client.answer()
            passes[speculate] = sum(1 for phase, _ in serving.experts.passes if phase.value == "decode")
            if speculate == 15:
                usage = finished(client)
                assert usage.accepted_tokens == usage.drafted_tokens > 10
                assert passes[15] == usage.generated_tokens - 1 - usage.accepted_tokens
    assert answers["off"] == answers[15]
    assert passes[15] < passes["off"] / 2


def test_constrained_requests_are_preempted_and_go_on(
    twin_of: TwinOf, tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    twin, eos = twin_of("qwen2_moe"), frozenset({eos_of(tokenizer)})
    grammar = Grammar(grammar_source.regex(r"([a-z]{3,5}true ){12}\."), vocabulary)
    prompts = [prompt(20, seed) for seed in (1, 2, 3)]
    with ServingEngine(twin) as serving:
        wanted = [serving.ask(each, 60, grammar=grammar, stop_token_ids=eos).answer() for each in prompts]
    with ServingEngine(twin, speculate=15, kv_tokens=128, max_prompt_tokens=64) as serving:
        clients = [serving.ask(each, 60, grammar=grammar, stop_token_ids=eos) for each in prompts]
        assert [client.answer() for client in clients] == wanted
        assert serving.metric("zipmoe_preemptions_total") > 0


def test_an_answer_whose_masks_take_too_long_fails_alone(
    twin_of: TwinOf, tokenizer: Tokenizer, vocabulary: GrammarVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zipmoe.model.text.grammar.FREE_SECONDS", 0.0)
    monkeypatch.setattr("zipmoe.model.text.grammar.SECONDS_PER_TOKEN", 0.0)
    eos = frozenset({eos_of(tokenizer)})
    with ServingEngine(twin_of("qwen2_moe")) as serving:
        plain = serving.ask(prompt(12), 30)
        client = serving.ask(prompt(12), 30, grammar=Grammar(SOURCES["regex"], vocabulary), stop_token_ids=eos)
        error = client.error()
        assert isinstance(error, InvalidRequest)
        assert error.message.startswith("the answer's regex, after 0 tokens, has taken 0.0 s of processor time")
        assert len(plain.answer()) == 30
