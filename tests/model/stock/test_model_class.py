"""The class that we choose and the way we construct it are those of `from_pretrained`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig

from zipmoe.errors import UnsupportedModel
from zipmoe.model.families.twin import tiny_config, write_checkpoint
from zipmoe.model.stock.model_class import (
    computes_eagerly,
    construct,
    constructor_fields,
    generating_classes,
    text_model_class,
    whole_class,
)

TYPES = ("qwen3_moe", "gpt_oss", "switch_transformers", "qwen3_5_moe", "glm4v_moe")


def parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            yield from parts(part)


def switches(config: PreTrainedConfig) -> tuple[str, str, torch.dtype]:
    return config._attn_implementation, config._experts_implementation, config.dtype


@pytest.mark.parametrize("model_type", ["qwen3_moe", "switch_transformers", "qwen3_5_moe", "llama4"])
def test_the_class_is_the_one_that_the_auto_class_makes(model_type: str) -> None:
    config = tiny_config(model_type)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        stock = auto_class.from_config(config)
    chosen, taken = text_model_class(config)
    assert type(stock) is chosen
    assert type(stock.config) is type(taken)


def test_the_class_of_all_parts_takes_the_whole_configuration() -> None:
    config = AutoConfig.for_model("qwen3_5_moe")
    assert [each.__name__ for each in generating_classes(config)][:2] == [
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
    ]
    assert whole_class(config).__name__ == "Qwen3_5MoeForConditionalGeneration"


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("diffusion_gemma", "no class that generates text"), ("qwen3_omni_moe", "no forward pass of its own")],
)
def test_a_type_that_no_class_computes_is_refused(model_type: str, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        text_model_class(AutoConfig.for_model(model_type))


@pytest.mark.parametrize("model_type", TYPES)
def test_every_part_computes_as_from_pretrained_makes_it_with_eager_code(model_type: str, tmp_path: Path) -> None:
    config = tiny_config(model_type)
    write_checkpoint(config, tmp_path, seed=0)
    stock = whole_class(config).from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager"
    )
    wanted = [(type(part), *switches(part)) for part in parts(stock.config)]
    ours = computes_eagerly(AutoConfig.from_pretrained(tmp_path))
    assert [(type(part), *switches(part)) for part in parts(ours)] == wanted
    assert {tuple(each) for _, *each in wanted} == {("eager", "eager", torch.bfloat16)}


@pytest.mark.parametrize("model_type", TYPES)
def test_a_constructed_model_has_no_memory_and_draws_no_numbers(model_type: str) -> None:
    before = torch.get_rng_state()
    model = construct(tiny_config(model_type)).model
    assert torch.equal(torch.get_rng_state(), before)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert torch.get_default_dtype() is torch.float32
    assert torch.empty(0).device.type == "cpu"


@pytest.mark.parametrize("model_type", TYPES)
def test_a_configuration_is_made_again_from_its_fields(model_type: str) -> None:
    config = tiny_config(model_type)
    fields = constructor_fields(config)
    assert {"model_type", "transformers_version", "dtype", "architectures"}.isdisjoint(fields)
    assert type(config)(**fields).to_dict() == config.to_dict()
