"""Bias and penalties: computed by hand, and through stock's `generate(logits_processor=[...])`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from tests.model.conftest import TwinOf
from tests.model.stock.test_generation_settings import PROMPT, SEED, with_defaults
from zipmoe.model.stock.generation_settings import StockGeneration
from zipmoe.model.text.penalties import GeneratedTokenPenalty, LogitBias
from zipmoe.model.text.sampling import Sampler, SamplingParams

NEW_TOKENS = 20


class ByHand(LogitsProcessor):
    """The same changes, one logit after the other."""

    def __init__(self, given: SamplingParams) -> None:
        self.given = given

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        generated = input_ids[0, len(PROMPT) :].tolist()
        for token_id, bias in self.given.logit_bias.items():
            scores[0, token_id] += bias
        for token_id in set(generated):
            scores[0, token_id] -= (self.given.frequency_penalty or 0.0) * generated.count(token_id)
            scores[0, token_id] -= self.given.presence_penalty or 0.0
        return scores


CASES = [
    SamplingParams(presence_penalty=2.0),
    SamplingParams(frequency_penalty=1.5),
    SamplingParams(frequency_penalty=-2.0, temperature=1.0),
    SamplingParams(logit_bias={5: 100.0}),
    SamplingParams(logit_bias=dict.fromkeys(range(50, 110), -100.0)),
    SamplingParams(
        presence_penalty=0.7, frequency_penalty=0.3, logit_bias={9: 2.0, 7: -3.0}, temperature=0.8, top_k=20
    ),
    SamplingParams(presence_penalty=1.0, repetition_penalty=1.3, temperature=1.0, top_p=0.9),
]


def compare(twin: Any, given: SamplingParams, defaults: dict[str, Any]) -> list[int]:
    own = with_defaults(twin, defaults)
    before, twin.stock.generation_config = twin.stock.generation_config, own
    fields = given.generation_fields()
    try:
        torch.manual_seed(SEED)
        output = twin.stock.generate(
            torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
            logits_processor=LogitsProcessorList([ByHand(given)]),
            **fields,
        )
    finally:
        twin.stock.generation_config = before
    rules = StockGeneration(twin.built.model, own).rules(fields, PROMPT, NEW_TOKENS, given.processors(len(PROMPT)))
    sampler = Sampler(rules, PROMPT, seed=SEED)
    chosen = [sampler.choose(row[0]).token_id for row in output.logits]
    assert chosen == output.sequences[0, len(PROMPT) :].tolist()
    return chosen


@pytest.mark.parametrize("given", CASES, ids=str)
def test_tokens_are_those_of_stock_with_a_processor_of_the_same_definition(
    given: SamplingParams, twin_of: TwinOf
) -> None:
    twin = twin_of("qwen2_moe")
    plain = SamplingParams(given.temperature, given.top_p, given.top_k, None, given.repetition_penalty)
    assert compare(twin, given, {}) != compare(twin, plain, {}), "the case changes nothing"


def test_bias_and_penalties_come_after_stocks_processors_and_before_its_filters(twin_of: TwinOf) -> None:
    given = SamplingParams(logit_bias={5: 3.0}, presence_penalty=1.0, temperature=0.5, repetition_penalty=1.2)
    stock = StockGeneration(twin_of("qwen2_moe").built.model, with_defaults(twin_of("qwen2_moe"), {}))
    names = [
        type(each).__name__
        for each in stock.rules(given.generation_fields(), PROMPT, 4, given.processors(10)).processors
    ]
    assert names == [
        "RepetitionPenaltyLogitsProcessor",
        "LogitBias",
        "GeneratedTokenPenalty",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
    ]


def test_log_probabilities_stay_those_of_the_model(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    stock = StockGeneration(twin.built.model, with_defaults(twin, {}))
    given = SamplingParams(temperature=0.0, logit_bias={5: 100.0})
    rules = stock.rules(given.generation_fields(), PROMPT, 4, given.processors(len(PROMPT)))
    logits = torch.randn(80, generator=torch.Generator().manual_seed(1))
    choice = Sampler(rules, PROMPT, top_logprobs=0).choose(logits)
    assert (choice.token_id, choice.logprob) == (5, float(torch.log_softmax(logits, -1)[5]))


def test_a_row_is_not_changed_and_the_prompt_does_not_count() -> None:
    scores = torch.zeros(1, 6)
    ids = torch.tensor([[1, 1, 2, 3, 3]])
    penalised = GeneratedTokenPenalty(2, 0.5, 0.25)(ids, scores)
    assert penalised.tolist() == [[0.0, 0.0, -0.75, -1.0, 0.0, 0.0]]
    assert LogitBias({4: 1.5})(ids, scores).tolist() == [[0.0, 0.0, 0.0, 0.0, 1.5, 0.0]]
    assert not scores.any()


def test_without_them_there_is_no_processor() -> None:
    assert not SamplingParams(presence_penalty=0.0, frequency_penalty=0.0).processors(3)


@pytest.mark.parametrize(("eos", "least"), [(list(range(80)), 6), ([5, 9, 40], 10)])
def test_a_least_number_of_tokens_is_stocks(eos: list[int], least: int, twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    own = with_defaults(twin, {"eos_token_id": eos})
    before, twin.stock.generation_config = twin.stock.generation_config, own
    try:
        output = twin.stock.generate(
            torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
            max_new_tokens=NEW_TOKENS, min_new_tokens=least, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    finally:
        twin.stock.generation_config = before
    fields: dict[str, Any] = {"min_new_tokens": least, "eos_token_id": sorted(eos)}
    sampler = Sampler(StockGeneration(twin.built.model, own).rules(fields, PROMPT, NEW_TOKENS), PROMPT)
    chosen = [sampler.choose(row[0]).token_id for row in output.logits]
    assert chosen == output.sequences[0, len(PROMPT) :].tolist()
    assert len(chosen) >= least
    assert not set(chosen[:least]) & set(eos)
