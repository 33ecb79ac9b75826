"""Stock's initialisation fills buffers and weights of a model as its own loading does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from zipmoe.model.families.twin import tiny_config, write_checkpoint
from zipmoe.model.stock.initialisation import initialised_model, refill_buffers
from zipmoe.model.stock.model_class import construct, whole_class

#: Plain rotary frequencies, scaled ones, ones per kind of layer, and buffers of other kinds.
TYPES = ("qwen3_moe", "gpt_oss", "deepseek_v2", "gemma4_text", "minimax", "nllb-moe")
CPU = torch.device("cpu")


@pytest.mark.parametrize("model_type", TYPES)
def test_the_buffers_are_those_of_a_loaded_model(model_type: str, tmp_path: Path) -> None:
    config = tiny_config(model_type)
    write_checkpoint(config, tmp_path, seed=0)
    wanted = dict(whole_class(config).from_pretrained(tmp_path, dtype=torch.bfloat16).named_non_persistent_buffers())
    model = construct(config).model
    refill_buffers(model, CPU)
    found = dict(model.named_non_persistent_buffers())
    assert found and set(found) == set(wanted)
    for name, buffer in found.items():
        assert buffer.dtype is wanted[name].dtype and torch.equal(buffer, wanted[name]), name


def test_a_buffer_that_stock_does_not_know_stays_unset() -> None:
    model = construct(tiny_config("qwen3_moe")).model
    model.lm_head.register_buffer("unheard_of", torch.empty(2, device="meta"), persistent=False)
    refill_buffers(model, CPU)
    assert bool(model.lm_head.get_buffer("unheard_of").isnan().all())
    assert not any(bool(each.isnan().any()) for name, each in model.named_buffers() if "rotary" in name)


def test_a_new_model_has_the_weights_of_the_auto_class() -> None:
    config = tiny_config("deepseek_v3")
    torch.manual_seed(3)
    stock = AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager"
    )
    torch.manual_seed(3)
    ours = initialised_model(whole_class(config), tiny_config("deepseek_v3"))
    assert type(ours) is type(stock)
    assert {name: each.dtype for name, each in ours.state_dict().items()} == {
        name: each.dtype for name, each in stock.state_dict().items()
    }
    assert all(torch.equal(each, stock.state_dict()[name]) for name, each in ours.state_dict().items())
    assert ours.config._attn_implementation == ours.config._experts_implementation == "eager"
