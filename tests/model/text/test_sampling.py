from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from zipmoe.errors import InternalError, InvalidRequest
from zipmoe.model.stock.generation_settings import ChoiceRules
from zipmoe.model.text.grammar_mask import GrammarMask
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


def rules(*processors: LogitsProcessor, sample: bool = False) -> ChoiceRules:
    return ChoiceRules(LogitsProcessorList(processors), sample)


DRAW = rules(sample=True)


def test_greedy_takes_the_first_of_equals() -> None:
    assert Sampler(rules()).choose(torch.tensor([0.0, 3.0, 3.0, 1.0])) == Choice(1)


def test_a_seed_repeats_and_other_requests_do_not_disturb_it() -> None:
    def draw(disturb: bool) -> list[int]:
        sampler, other = Sampler(DRAW, seed=7), Sampler(DRAW)
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
    draws = {tuple(Sampler(DRAW).choose(torch.zeros(10**6)).token_id for _ in range(3)) for _ in range(2)}
    assert len(draws) == 2


@pytest.mark.parametrize("temperature", [0, 1e-40, 1e-6])
def test_a_vanishing_temperature_is_greedy(temperature: float) -> None:
    assert SamplingParams(temperature).generation_fields() == {"do_sample": False, "temperature": 1.0}


@pytest.mark.parametrize("temperature", [1e-5, 1e-4])
def test_the_smallest_temperatures_are_greedy_in_effect_and_never_a_nan(temperature: float) -> None:
    fields = SamplingParams(temperature).generation_fields()
    warper = TemperatureLogitsWarper(fields["temperature"])
    assert Sampler(rules(warper, sample=True)).choose(LOGITS * 30).token_id == int(LOGITS.argmax())


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    filters = rules(RepetitionPenaltyLogitsProcessor(2.0), TopKLogitsWarper(1), sample=True)
    choice = Sampler(filters, range(50), top_logprobs=3).choose(LOGITS.bfloat16())
    expected = torch.log_softmax(LOGITS.bfloat16().float(), dim=-1)
    best = expected.topk(3)
    assert choice.logprob == float(expected[choice.token_id])
    assert [entry.token_id for entry in choice.top_logprobs] == best.indices.tolist()
    assert [entry.logprob for entry in choice.top_logprobs] == best.values.tolist()


def test_logprobs_are_reported_only_on_request() -> None:
    assert Sampler(rules()).choose(LOGITS).logprob is None
    choice = Sampler(rules(), top_logprobs=0).choose(LOGITS)
    assert choice.logprob is not None
    assert choice.top_logprobs == ()
    assert len(Sampler(rules(), top_logprobs=20).choose(LOGITS[:5]).top_logprobs) == 5


@pytest.mark.parametrize("count", [-1, 21])
def test_too_many_alternatives_are_refused(count: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"top_logprobs is {count}, but has to be in \[0, 20\]"):
        Sampler(rules(), top_logprobs=count)


def test_a_forced_token_is_scored_counts_as_seen_and_draws_nothing() -> None:
    penalty = rules(RepetitionPenaltyLogitsProcessor(1.5), sample=True)
    forced, plain = Sampler(penalty, [4, 9], seed=1, top_logprobs=1), Sampler(penalty, [4], seed=1)
    choice = forced.force(LOGITS, 9)
    assert choice.logprob == float(torch.log_softmax(LOGITS, dim=-1)[9])
    plain.force(LOGITS, 9)
    assert [forced.choose(LOGITS).token_id for _ in range(5)] == [plain.choose(LOGITS).token_id for _ in range(5)]
    with pytest.raises(InvalidRequest, match="forced token id is 50"):
        forced.force(LOGITS, 50)


def test_logits_are_not_changed() -> None:
    before = LOGITS.clone()
    Sampler(rules(SuppressTokensLogitsProcessor([int(LOGITS.argmax())])), range(50)).choose(LOGITS)
    assert torch.equal(LOGITS, before)


def test_logits_without_a_distribution_are_an_error_not_a_crash() -> None:
    with pytest.raises(InternalError, match="1 are NaN"):
        Sampler(DRAW).choose(torch.tensor([0.0, math.nan, 1.0]))


class Only:
    """Stands in for the progress through a grammar that leaves some tokens."""

    def __init__(self, *token_ids: int) -> None:
        self.token_ids = token_ids
        self.taken: list[int] = []

    def allowed(self) -> npt.NDArray[np.bool_]:
        return np.isin(np.arange(64), self.token_ids)

    def next_certain(self) -> int | None:
        return self.token_ids[0] if len(self.token_ids) == 1 else None

    def advance(self, token_id: int) -> None:
        self.taken.append(token_id)


def constrained(progress: Only, *processors: LogitsProcessor, sample: bool = False, **more: Any) -> Sampler:
    own: Any = progress
    return Sampler(rules(GrammarMask(own), *processors, sample=sample), [1], progress=own, **more)


def test_a_mask_acts_before_the_filters_of_sampling() -> None:
    """The likeliest token is not allowed: among all tokens, top-k 1 would leave no token that is."""
    progress = Only(*LOGITS.argsort()[:5].tolist())
    sampler = constrained(progress, TopKLogitsWarper(1), sample=True, seed=1)
    best = max(progress.token_ids, key=lambda token_id: float(LOGITS[token_id]))
    assert sampler.choose(LOGITS).token_id == best
    assert progress.taken == [best]


def test_log_probabilities_of_a_constrained_token_are_the_unmodified_ones() -> None:
    choice = constrained(Only(7), top_logprobs=2).choose(LOGITS)
    expected = torch.log_softmax(LOGITS, dim=-1)
    assert (choice.token_id, choice.logprob) == (7, float(expected[7]))
    assert [entry.logprob for entry in choice.top_logprobs] == expected.topk(2).values.tolist()


def test_the_only_token_moves_the_generator_on_as_a_draw_does() -> None:
    """Also where the processors are not known to keep it, so that they run."""
    drawn = []
    for more in ((), (SuppressTokensLogitsProcessor([3], device="cpu"),)):
        progress = Only(7)
        sampler = constrained(progress, *more, TemperatureLogitsWarper(0.7), sample=True, seed=5)
        sampler.choose(LOGITS)
        progress.token_ids = tuple(range(50))
        drawn.append([sampler.choose(LOGITS).token_id for _ in range(8)])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("sample", [False, True])
def test_rules_that_forbid_all_that_a_mask_allows_are_told(sample: bool) -> None:
    sampler = constrained(Only(7), SuppressTokensLogitsProcessor([7], device="cpu"), sample=sample)
    with pytest.raises(InvalidRequest, match="forbid all tokens that the answer's constraint allows"):
        sampler.choose(LOGITS)


def test_a_mask_of_fewer_tokens_than_logits_forbids_the_rest() -> None:
    logits = torch.cat((LOGITS, torch.full((30,), 99.0)))
    assert constrained(Only(5, 7, 60)).choose(logits).token_id == 60
    assert constrained(Only(5, 7)).choose(logits).token_id in (5, 7)
