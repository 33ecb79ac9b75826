"""Stock's models look up their attention function at each call and hand our argument down to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from zipmoe.errors import InternalError
from zipmoe.model.families.random_weights import random_model
from zipmoe.model.families.twin import tiny_config
from zipmoe.model.stock.attention_switch import attending_by, eager_attention
from zipmoe.model.stock.body import text_model
from zipmoe.model.stock.model_class import text_model_class

NAME = "zipmoe_test"
#: Plain heads, a window and sinks, latents, a text model inside a multimodal one.
TYPES = ("qwen3_moe", "gpt_oss", "deepseek_v2", "glm4v_moe")
ROW = {"input_ids": torch.tensor([[5]]), "position_ids": torch.tensor([[0]]), "use_cache": True, "return_dict": True}


class Pass:
    """So much of a cache as a pass of ours has, and a record of the attention calls."""

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.updated: list[int] = []
        self.masks: list[torch.Tensor | None] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        self.updated.append(layer_idx)
        return keys, values


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    ragged: Pass,
    **rest: Any,
) -> Any:
    """Attends by stock's own function, and notes the call."""
    ragged.layers.append(module.layer_idx)
    ragged.masks.append(mask)
    return eager_attention(module)(module, query, key, value, mask, **rest)


AttentionInterface.register(NAME, attend)


@pytest.mark.parametrize("model_type", TYPES)
def test_every_layer_attends_by_our_function_without_a_mask_and_with_stocks_bits(model_type: str) -> None:
    model = random_model(*text_model_class(tiny_config(model_type)), seed=0)
    body = text_model(model)
    ours = Pass()
    with torch.inference_mode():
        wanted = model(**ROW).logits
        with attending_by(body, NAME):
            found = model(**ROW, past_key_values=ours, ragged=ours).logits
        assert torch.equal(model(**ROW).logits, wanted), "stock's own function is back"
    assert ours.layers == ours.updated == list(range(len(body.layers)))
    assert ours.masks == [None] * len(body.layers)
    assert torch.equal(found, wanted)


def test_an_encoder_decoder_attends_by_our_function_in_its_decoder_alone() -> None:
    model = random_model(*text_model_class(tiny_config("switch_transformers")), seed=0)
    inputs = {"input_ids": torch.tensor([[5, 6]]), "decoder_input_ids": torch.tensor([[0]]), "use_cache": False}
    encoded = model.get_encoder()(input_ids=inputs["input_ids"], return_dict=True)
    ours = Pass()
    with torch.inference_mode(), attending_by(model.get_decoder(), NAME):
        model.get_encoder()(input_ids=inputs["input_ids"], return_dict=True)
        assert ours.layers == []
        model(decoder_input_ids=inputs["decoder_input_ids"], encoder_outputs=encoded, ragged=ours, use_cache=False)
    assert len(ours.layers) == 2 * model.config.num_decoder_layers, "self-attention and cross-attention"


def test_a_model_that_does_not_attend_by_eager_code_is_refused_and_kept() -> None:
    model = random_model(*text_model_class(tiny_config("qwen3_moe")), seed=0)
    with attending_by(model, NAME):
        with pytest.raises(InternalError, match=NAME), attending_by(model, NAME):
            pass
        assert model.config._attn_implementation == NAME
    with pytest.raises(KeyError), attending_by(model, NAME):
        raise KeyError
    assert model.config._attn_implementation == "eager"
