from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from tests.model.conftest import TwinOf
from tests.model.tiny import VOCABULARY
from zipmoe.errors import InternalError, InvalidRequest
from zipmoe.model.passes.sequence import Sequence
from zipmoe.model.text.sampling import Choice, Sampler, SamplingParams

LOGITS = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", -0.1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", 2.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", math.inf),
        ("repetition_penalty", math.nan),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_and_value(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        SamplingParams(**{field: value})
    assert refusal.value.message.startswith(f"{field} is {value}, but has to be ")


def test_the_ends_of_every_range_are_accepted() -> None:
    SamplingParams(temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=1e-3, seed=0)
    SamplingParams(temperature=1e30, top_p=1e-9, top_k=10**9, min_p=1, repetition_penalty=100, seed=2**64 - 1)


def test_greedy_is_the_default_and_takes_the_first_of_equals() -> None:
    assert Sampler(SamplingParams()).choose(torch.tensor([0.0, 3.0, 3.0, 1.0])) == Choice(1)


def test_what_the_request_leaves_open_is_the_models_own() -> None:
    own = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1)
    assert SamplingParams.resolved(own, {}) == SamplingParams(0.7, 0.8, 20, 0.0, 1.1, None)
    given = {"temperature": 0.0, "top_k": 0, "seed": 5}
    assert SamplingParams.resolved(own, given) == SamplingParams(0.0, 0.8, 0, 0.0, 1.1, 5)
    assert SamplingParams.resolved(GenerationConfig(), {}) == SamplingParams()
    assert SamplingParams.resolved(GenerationConfig(do_sample=True), {}).temperature == 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 12},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 0.9, "min_p": 0.05, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.2},
        {"temperature": 0.0, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_tokens_are_those_of_stock_generate_under_the_same_seed(settings: dict[str, Any], twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    prompt = list(range(3, 20))
    stock_settings = {"top_k": 0, **settings, "do_sample": settings["temperature"] > 0}
    if not stock_settings["do_sample"]:
        stock_settings = {"do_sample": False, "repetition_penalty": settings["repetition_penalty"]}
    torch.manual_seed(11)
    expected = twin.stock.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=12,
        eos_token_id=VOCABULARY + 1,
        **stock_settings,
    )[0, len(prompt) :].tolist()
    sampler = Sampler(SamplingParams(**settings, seed=11), prompt)
    sequence = Sequence(twin.built)
    tokens = [sampler.choose(sequence.prefill(prompt).logits).token_id]
    while len(tokens) < 12:
        tokens.append(sampler.choose(sequence.step(tokens[-1])).token_id)
    assert tokens == expected


def test_a_seed_repeats_and_other_requests_do_not_disturb_it() -> None:
    def draw(disturb: bool) -> list[int]:
        sampler, other = Sampler(SamplingParams(1.0, seed=7)), Sampler(SamplingParams(1.0))
        tokens = []
        for _ in range(20):
            tokens.append(sampler.choose(LOGITS).token_id)
            if disturb:
                other.choose(LOGITS)
                torch.rand(3)
        return tokens

    assert draw(disturb=False) == draw(disturb=True)
    assert len(set(draw(disturb=False))) > 3


def test_without_a_seed_requests_differ() -> None:
    draws = {
        tuple(Sampler(SamplingParams(1.0)).choose(torch.zeros(10**6)).token_id for _ in range(3)) for _ in range(2)
    }
    assert len(draws) == 2


@pytest.mark.parametrize("temperature", [1e-40, 1e-6, 1e-5, 1e-4])
def test_a_vanishing_temperature_is_greedy_and_never_a_nan(temperature: float) -> None:
    assert Sampler(SamplingParams(temperature)).choose(LOGITS * 30).token_id == int(LOGITS.argmax())


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    params = SamplingParams(temperature=0.5, top_k=1, repetition_penalty=2.0)
    choice = Sampler(params, range(50), top_logprobs=3).choose(LOGITS.bfloat16())
    expected = torch.log_softmax(LOGITS.bfloat16().float(), dim=-1)
    best = expected.topk(3)
    assert choice.logprob == float(expected[choice.token_id])
    assert [entry.token_id for entry in choice.top_logprobs] == best.indices.tolist()
    assert [entry.logprob for entry in choice.top_logprobs] == best.values.tolist()


def test_logprobs_are_reported_only_on_request() -> None:
    assert Sampler(SamplingParams()).choose(LOGITS).logprob is None
    choice = Sampler(SamplingParams(), top_logprobs=0).choose(LOGITS)
    assert choice.logprob is not None
    assert choice.top_logprobs == ()
    assert len(Sampler(SamplingParams(), top_logprobs=20).choose(LOGITS[:5]).top_logprobs) == 5


@pytest.mark.parametrize("count", [-1, 21])
def test_too_many_alternatives_are_refused(count: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"top_logprobs is {count}, but has to be in \[0, 20\]"):
        Sampler(SamplingParams(), top_logprobs=count)


def test_a_forced_token_is_scored_counts_as_seen_and_draws_nothing() -> None:
    params = SamplingParams(1.0, repetition_penalty=1.5, seed=1)
    forced, plain = Sampler(params, [4, 9], top_logprobs=1), Sampler(params, [4])
    choice = forced.force(LOGITS, 9)
    assert choice.logprob == float(torch.log_softmax(LOGITS, dim=-1)[9])
    plain.force(LOGITS, 9)
    assert [forced.choose(LOGITS).token_id for _ in range(5)] == [plain.choose(LOGITS).token_id for _ in range(5)]
    with pytest.raises(InvalidRequest, match="forced token id is 50"):
        forced.force(LOGITS, 50)


def test_logits_are_not_changed() -> None:
    before = LOGITS.clone()
    Sampler(SamplingParams(0.5, top_k=3, repetition_penalty=2.0), range(50)).choose(LOGITS)
    assert torch.equal(LOGITS, before)


def test_logits_without_a_distribution_are_an_error_not_a_crash() -> None:
    with pytest.raises(InternalError, match="1 are NaN"):
        Sampler(SamplingParams(1.0)).choose(torch.tensor([0.0, math.nan, 1.0]))
