"""The cache that we make is the one that `generate` makes, with the windows that its layers have."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from zipmoe.errors import UnsupportedModel
from zipmoe.model.families.random_weights import random_model
from zipmoe.model.families.twin import tiny_config
from zipmoe.model.stock.caches import cached_windows, new_cache
from zipmoe.model.stock.model_class import text_model_class


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss", "qwen3_next", "gemma4_text", "glm4v_moe"])
def test_the_cache_is_the_one_of_generate(model_type: str) -> None:
    model = random_model(*text_model_class(tiny_config(model_type)), seed=0)
    ours = new_cache(model)
    settings = GenerationConfig(do_sample=False, max_new_tokens=2, return_dict_in_generate=True, pad_token_id=0)
    answer = model.generate(torch.tensor([[5, 6, 7]]), generation_config=settings)
    assert type(ours) is type(answer.past_key_values)
    assert [type(layer) for layer in ours.layers] == [type(layer) for layer in answer.past_key_values.layers]
    assert ours.get_seq_length() == 0


def test_a_model_with_a_cache_of_its_own_kind_makes_it_itself() -> None:
    model = random_model(*text_model_class(tiny_config("minimax")), seed=0)
    assert new_cache(model) is None
    output = model(input_ids=torch.tensor([[5, 6]]), past_key_values=None, use_cache=True)
    again = model(input_ids=torch.tensor([[7]]), past_key_values=output.past_key_values, use_cache=True)
    assert again.past_key_values is output.past_key_values is not None


def test_the_windows_are_those_of_the_kinds_of_layers() -> None:
    config = tiny_config("gpt_oss")
    windows = {"sliding_attention": config.sliding_window, "full_attention": None}
    assert set(config.layer_types) == set(windows)
    assert cached_windows(config) == tuple(windows[kind] for kind in config.layer_types)
    plain = tiny_config("qwen3_moe")
    assert cached_windows(plain) == (None,) * plain.num_hidden_layers


def test_a_window_counts_the_querys_own_token() -> None:
    config = tiny_config("gpt_oss")
    model = random_model(*text_model_class(config), seed=0)
    tokens = config.sliding_window + 5
    output = model(input_ids=torch.arange(tokens)[None], past_key_values=new_cache(model), use_cache=True)
    kept = {layer.keys.shape[-2] for layer in output.past_key_values.layers}
    assert kept == {config.sliding_window - 1, tokens}, "the tokens before the next one"


@pytest.mark.parametrize("model_type", ["qwen3_next", "nemotron_h"])
def test_layers_that_keep_something_else_are_refused(model_type: str) -> None:
    with pytest.raises(UnsupportedModel, match="cannot be kept in pages"):
        cached_windows(tiny_config(model_type))
