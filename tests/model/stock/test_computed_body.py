"""Stock's heads and decoders compute from hidden states that they are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from zipmoe.model.families.random_weights import random_model
from zipmoe.model.families.twin import tiny_config
from zipmoe.model.stock.computed_body import computed_body, computed_encoder
from zipmoe.model.stock.model_class import text_model_class

IDS = torch.randint(400, (1, 20), generator=torch.Generator().manual_seed(0))


class Refusing(nn.Module):
    """Fails when it is called."""

    def forward(self, *_: Any, **__: Any) -> None:
        raise AssertionError("this part of the model is not to be computed")


@pytest.mark.parametrize(
    "model_type", ["qwen3_moe", "granitemoe", "phimoe", "glm4v_moe", "gemma4_text", "minimax_m3_vl"]
)
def test_a_head_computes_the_logits_from_known_hidden_states(model_type: str) -> None:
    model = random_model(*text_model_class(tiny_config(model_type)), seed=0)
    body = model.base_model
    with torch.inference_mode():
        wanted = model(input_ids=IDS, use_cache=False, return_dict=True).logits
        hidden = body(input_ids=IDS, use_cache=False, return_dict=True).last_hidden_state
        body.forward = Refusing().forward
        with computed_body(model, hidden):
            assert torch.equal(model(input_ids=IDS, use_cache=False, return_dict=True).logits, wanted)
    assert model.base_model is body


def test_the_body_is_back_after_an_error() -> None:
    model = random_model(*text_model_class(tiny_config("qwen3_moe")), seed=0)
    body = model.base_model
    with pytest.raises(KeyError), computed_body(model, torch.empty(1, 0, 64)):
        raise KeyError
    assert model.base_model is body


def test_a_decoder_computes_from_an_encoders_known_output() -> None:
    model = random_model(*text_model_class(tiny_config("switch_transformers")), seed=0)
    start = torch.tensor([[0]])
    with torch.inference_mode():
        wanted = model(input_ids=IDS, decoder_input_ids=start, return_dict=True).logits
        hidden = model.get_encoder()(input_ids=IDS, return_dict=True).last_hidden_state
        model.get_encoder().forward = Refusing().forward
        known = computed_encoder(hidden)
        assert torch.equal(model(decoder_input_ids=start, encoder_outputs=known, return_dict=True).logits, wanted)
