"""Sizes that are measured on the meta device are those of the cache that stock fills in memory."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from zipmoe.model.families.random_weights import random_model
from zipmoe.model.families.twin import tiny_config
from zipmoe.model.stock.cache_sizes import LENGTHS, _cache_bytes, _tensors, measure_sizes
from zipmoe.model.stock.caches import new_cache
from zipmoe.model.stock.model_class import construct, text_model_class, whole_class
from zipmoe.model.synth.configs import FAMILIES, configuration
from zipmoe.planning.kv_bytes import kv_bytes_per_token, text_part
from zipmoe.planning.memory_split import experts_per_token
from zipmoe.store.format.measured import MeasuredSizes

HYBRID = ("qwen3_next", "qwen3_5_moe", "gemma4", "kimi_linear", "nemotron_h", "lfm2_moe", "granitemoehybrid", "jamba")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "switch_transformers"])
def test_the_sizes_of_a_known_family_are_those_that_its_configuration_tells(family: str) -> None:
    config = configuration(family, true_widths=True, layers=None, vocab=None, overrides={})
    told = text_part(config)
    wanted = MeasuredSizes(kv_bytes_per_token(told, "latent"), 0, experts_per_token(told))
    assert measure_sizes(construct(AutoConfig.for_model(**config)).model) == wanted


@pytest.mark.parametrize("model_type", HYBRID)
def test_the_measured_bytes_are_those_of_a_cache_in_memory(model_type: str) -> None:
    model_class, config = text_model_class(tiny_config(model_type))
    measured = measure_sizes(construct(config).model)
    assert measured is not None
    stock = random_model(model_class if config.sub_configs == {} else whole_class(config), config, seed=0)
    for tokens in LENGTHS:
        ids = torch.arange(tokens)[None] % 400
        with torch.inference_mode():
            output = stock(input_ids=ids, past_key_values=new_cache(stock), use_cache=True, return_dict=True)
        nbytes = sum(each.nbytes for each in _tensors(output.past_key_values, set()))
        assert measured.request_bytes + tokens * measured.token_bytes >= nbytes
        assert _cache_bytes_of(model_type, tokens) >= nbytes


def _cache_bytes_of(model_type: str, tokens: int) -> int:
    from zipmoe.model.stock.cache_sizes import _without_experts

    model = construct(tiny_config(model_type)).model
    with torch.inference_mode(), _without_experts(model, []):
        return _cache_bytes(model, tokens)


def test_the_state_of_a_request_of_qwen3_5_35b_is_63_megabytes() -> None:
    measured = measure_sizes(construct(AutoConfig.for_model("qwen3_5_moe")).model)
    assert measured is not None
    assert measured.experts_per_token == 8
    states = 30 * 32 * 128 * 128 * 4  # layers, heads, numbers of a key and of a value, bytes of fp32
    assert states <= measured.request_bytes < 1.1 * states
    assert measured.token_bytes == 10 * 2 * 2 * 256 * 2  # layers, keys and values, heads, numbers, bytes
