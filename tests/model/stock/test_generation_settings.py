"""A request that sets nothing, or some fields, gets the tokens of stock's `generate()` under the model's defaults."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from tests.model.conftest import Twin, TwinOf
from zipmoe.errors import InvalidRequest, UnsupportedModel
from zipmoe.model.stock.generation_settings import StockGeneration, ignored_settings
from zipmoe.model.text.sampling import Sampler, SamplingParams

PROMPT = [3, 4, 5, 6, 4, 5, 9, 12, 4, 5]
NEW_TOKENS = 14
SEED = 11

DEFAULTS: list[dict[str, Any]] = [
    {},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1},
    {"do_sample": True, "temperature": 1.5, "top_k": 0, "min_p": 0.02},
    {"do_sample": True, "typical_p": 0.6},
    {"do_sample": True, "epsilon_cutoff": 0.004, "top_k": None},
    {"do_sample": True, "eta_cutoff": 0.003},
    {"do_sample": True, "renormalize_logits": True, "temperature": 0.8},
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2},
    {"do_sample": True, "no_repeat_ngram_size": 2, "top_k": 5},
    {"suppress_tokens": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]},
    {"begin_suppress_tokens": list(range(60))},
    {"bad_words_ids": [[7], [8, 9], [30]], "eos_token_id": 2},
    {"sequence_bias": [[[7], 4.0], [[11, 12], 9.0]]},
    {"forced_bos_token_id": 9},
    {"forced_eos_token_id": 8},
    {"min_new_tokens": 6, "eos_token_id": list(range(80))},
    {"min_length": 14, "eos_token_id": list(range(80))},
    {"exponential_decay_length_penalty": [3, 1.6], "eos_token_id": 5},
    {"remove_invalid_values": True},
    {"eos_token_id": [5, 9, 40]},
    {"max_new_tokens": 3, "max_length": 7},
]
GIVEN: list[SamplingParams] = [
    SamplingParams(),
    SamplingParams(temperature=0.9),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.2, top_p=0.7),
    SamplingParams(top_k=3),
    SamplingParams(temperature=1.0, top_k=0, repetition_penalty=1.3),
]


def stock_fields(given: SamplingParams) -> dict[str, Any]:
    """The same wishes as arguments of `generate()`: `temperature=0` is stock's `do_sample=False`."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    fields = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.temperature is not None:
        fields["do_sample"] = given.temperature > 0
    if given.temperature == 0:
        del fields["temperature"]
    return fields


def with_defaults(twin: Twin, defaults: dict[str, Any]) -> GenerationConfig:
    """The content of a generation_config.json: the twin's special tokens and some more fields."""
    own = copy.deepcopy(twin.stock.generation_config)
    own.update(**{"eos_token_id": None, "pad_token_id": 0, **defaults})
    return own


def compare(twin: Twin, defaults: dict[str, Any], given: SamplingParams, prompt: Sequence[int] = PROMPT) -> list[int]:
    """Compares our choices with stock's on stock's own logits, token by token, and returns them."""
    own = with_defaults(twin, defaults)
    before, twin.stock.generation_config = twin.stock.generation_config, own
    try:
        torch.manual_seed(SEED)
        output = twin.stock.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
            **stock_fields(given),
        )
    finally:
        twin.stock.generation_config = before
    stock = StockGeneration(twin.built.model, own)
    sampler = Sampler(
        stock.rules(given.generation_fields(), prompt, NEW_TOKENS), stock.decoder_input(prompt), seed=SEED
    )
    chosen = [sampler.choose(row[0]).token_id for row in output.logits]
    assert chosen == output.sequences[0, -len(chosen) :].tolist()
    return chosen


@pytest.mark.parametrize("family", ["qwen2_moe", "switch_transformers"])
@pytest.mark.parametrize("defaults", DEFAULTS, ids=str)
def test_a_request_that_sets_nothing_gets_the_tokens_of_generate(
    family: str, defaults: dict[str, Any], twin_of: TwinOf
) -> None:
    compare(twin_of(family), defaults, SamplingParams())


@pytest.mark.parametrize("given", GIVEN, ids=str)
@pytest.mark.parametrize("defaults", [DEFAULTS[0], DEFAULTS[2], DEFAULTS[10]], ids=str)
def test_fields_that_a_request_leaves_unset_follow_stock(
    defaults: dict[str, Any], given: SamplingParams, twin_of: TwinOf
) -> None:
    compare(twin_of("qwen2_moe"), defaults, given)


def test_the_defaults_change_tokens_and_so_the_comparison_can_fail(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    plain = compare(twin, {}, SamplingParams())
    changing = [each for each in DEFAULTS[8:20] if compare(twin, each, SamplingParams()) != plain]
    assert len(changing) >= 8
    drawn = {tuple(compare(twin, each, SamplingParams())) for each in DEFAULTS[1:8]}
    assert len(drawn) >= 5


@pytest.mark.parametrize(
    ("rule", "last"),
    [({"encoder_repetition_penalty": 1e3}, 60), ({"encoder_no_repeat_ngram_size": 1}, 110)],
    ids=str,
)
def test_an_encoder_decoders_rules_know_the_prompt(rule: dict[str, Any], last: int, twin_of: TwinOf) -> None:
    twin, prompt = twin_of("switch_transformers"), list(range(3, last))
    assert compare(twin, rule, SamplingParams(), prompt) != compare(twin, {}, SamplingParams(), prompt)


def test_another_way_of_generating_is_left_out_and_named(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    own = with_defaults(twin, {"num_beams": 4, "guidance_scale": 2.5, "penalty_alpha": 0.6})
    assert ignored_settings(own) == {"num_beams": 4, "guidance_scale": 2.5, "penalty_alpha": 0.6}
    assert ignored_settings(with_defaults(twin, {"num_beams": 1, "top_k": 7})) == {}
    rules = StockGeneration(twin.built.model, own).rules({}, PROMPT, NEW_TOKENS)
    assert not rules.processors
    assert not rules.sample


def test_defaults_that_stock_refuses_are_refused_at_once(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    with pytest.raises(UnsupportedModel, match=r"generation_config\.json: the generation settings cannot be used"):
        StockGeneration(twin.built.model, with_defaults(twin, {"suppress_tokens": "abc"}))
    stock = StockGeneration(twin.built.model, with_defaults(twin, {}))
    with pytest.raises(InvalidRequest, match="generation settings"):
        stock.rules({"top_k": -3, "do_sample": True}, PROMPT, NEW_TOKENS)
