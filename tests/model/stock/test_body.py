"""Stock's body calls its layers one after the other, each with the hidden states of the one before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from zipmoe.errors import UnsupportedModel
from zipmoe.model.families.random_weights import random_model
from zipmoe.model.families.twin import tiny_config
from zipmoe.model.stock.body import in_place_of_layers, text_body, text_model
from zipmoe.model.stock.model_class import construct, text_model_class

TYPES = ("qwen3_moe", "gpt_oss", "deepseek_v2", "glm4v_moe", "granitemoe", "ernie4_5_moe", "mixtral")


class Noted(nn.Module):
    """Records the arguments of a layer's call and returns the hidden states unchanged."""

    def __init__(self, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
        super().__init__()
        self._calls = calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._calls.append((args, kwargs))
        return args[0]


def drawn(model_type: str) -> PreTrainedModel:
    return random_model(*text_model_class(tiny_config(model_type)), seed=0)


@pytest.mark.parametrize("model_type", TYPES)
def test_layers_that_run_by_hand_give_the_hidden_states_of_the_body(model_type: str) -> None:
    model = drawn(model_type)
    body = text_body(model)
    layers = list(body.layers)
    ids = torch.randint(400, (1, 20), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "position_ids": torch.arange(20)[None], "use_cache": False, "return_dict": True}
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with torch.inference_mode():
        wanted = model.base_model(**inputs).last_hidden_state
        with in_place_of_layers(body, [Noted(calls) for _ in layers]):
            model.base_model(**inputs)
        assert [len(args) for args, _ in calls] == [1] * len(layers), "each once, hidden states alone by position"
        hidden = calls[0][0][0]
        for layer, (_, kwargs) in zip(layers, calls, strict=True):
            hidden = layer(hidden, **kwargs)
        last = {"hidden": hidden}

        class Computed(nn.Module):
            def forward(self, *_: Any, **__: Any) -> torch.Tensor:
                return last["hidden"]

        with in_place_of_layers(body, [Computed()]):
            assert torch.equal(model.base_model(**inputs).last_hidden_state, wanted)
    assert list(body.layers) == layers


def test_the_layers_are_back_after_an_error() -> None:
    body = text_body(construct(tiny_config("qwen3_moe")).model)
    layers = body.layers
    with pytest.raises(KeyError), in_place_of_layers(body, []):
        raise KeyError
    assert body.layers is layers


@pytest.mark.parametrize("model_type", TYPES)
def test_the_body_is_what_the_head_computes_from(model_type: str) -> None:
    model = drawn(model_type)
    outputs: list[torch.Tensor] = []
    hook = text_model(model).register_forward_hook(lambda _, __, output: outputs.append(output.last_hidden_state))
    with torch.inference_mode():
        wanted = model.base_model(input_ids=torch.tensor([[5, 6, 7]]), return_dict=True).last_hidden_state
    hook.remove()
    assert len(outputs) == 1 and torch.equal(outputs[0], wanted)


def test_a_body_without_a_list_of_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no list of layers"):
        text_body(construct(tiny_config("switch_transformers")).model)
