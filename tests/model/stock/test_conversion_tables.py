"""Conversions that follow transformers' tables give the parameters that `from_pretrained` loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from zipmoe.model.families.twin import tiny_config, write_checkpoint
from zipmoe.model.stock.conversion_tables import ConversionTable, checkpoint_tensors, converted, in_stock_order
from zipmoe.model.stock.model_class import construct, whole_class

#: Renamed keys, a merge of all experts, one and two inputs, several results, experts in a module dict.
TYPES = ("mixtral", "qwen3_moe", "gpt_oss", "ernie4_5_vl_moe", "jetmoe", "nllb-moe")
WEIGHTS = "model.safetensors"


def written(model_type: str, folder: Path) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """Stock's model of a written twin, and the tensors of its checkpoint."""
    config = tiny_config(model_type)
    write_checkpoint(config, folder, seed=0)
    stock = whole_class(config).from_pretrained(folder, dtype=torch.bfloat16)
    return stock, load_file(folder / WEIGHTS)


@pytest.mark.parametrize("model_type", TYPES)
def test_the_tables_give_the_parameters_that_stock_loads(model_type: str, tmp_path: Path) -> None:
    stock, tensors = written(model_type, tmp_path)
    wanted = stock.state_dict()
    table = ConversionTable(stock, wanted)
    inputs = {}
    for key in in_stock_order(tensors):
        parameter, pattern, converter = table.target_of(key)
        assert parameter in wanted, key
        inputs.setdefault(parameter, (converter, []))[1].append((pattern, key, lambda key=key: tensors[key]))
    found = {}
    for parameter, (converter, sources) in inputs.items():
        if converter is None:
            assert [pattern for pattern, _, _ in sources] == [sources[0][1]], "without a conversion, the key"
            found[parameter] = tensors[sources[0][1]]
        else:
            found |= converted(converter, parameter, sources, stock, stock.config)
    missing = set(wanted) - set(found)
    assert missing <= set(stock.all_tied_weights_keys)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


def test_a_conversion_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    stock, tensors = written("qwen3_moe", tmp_path)
    table = ConversionTable(stock, stock.state_dict())
    key = next(key for key in tensors if key.endswith("experts.0.down_proj.weight"))
    parameter, pattern, converter = table.target_of(key)
    assert converter is not None and table.target_of(key).converter is converter
    once = converted(converter, parameter, [(pattern, key, lambda: tensors[key])], stock, stock.config)
    again = converted(converter, parameter, [(pattern, key, lambda: tensors[key])], stock, stock.config)
    assert torch.equal(once[parameter], again[parameter]) and len(again[parameter]) == 1


def test_a_conversion_takes_functions_and_calls_each_once(tmp_path: Path) -> None:
    stock, tensors = written("qwen3_moe", tmp_path)
    table = ConversionTable(stock, stock.state_dict())
    keys = [key for key in in_stock_order(tensors) if ".layers.0.mlp.experts." in key and "down_proj" in key]
    asked: list[str] = []

    def make(key: str) -> torch.Tensor:
        asked.append(key)
        return tensors[key]

    targets = [table.target_of(key) for key in keys]
    sources = [(target.pattern, key, lambda key=key: make(key)) for target, key in zip(targets, keys, strict=True)]
    (converter,) = {target.converter for target in targets}
    assert converter is not None and asked == []
    (result,) = converted(converter, targets[0].parameter, sources, None, None).values()
    assert asked == keys
    assert torch.equal(result, torch.stack([tensors[key] for key in keys]))


def test_unexpected_keys_are_ignored_as_from_pretrained_ignores_them(tmp_path: Path) -> None:
    stock, tensors = written("deepseek_v3", tmp_path)
    more = ["model.layers.61.eh_proj.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.unheard_of.weight"]
    save_file({**tensors, **{key: torch.ones(2) for key in more}}, tmp_path / WEIGHTS, metadata={"format": "pt"})
    _, loading = type(stock).from_pretrained(tmp_path, output_loading_info=True)
    table = ConversionTable(stock, stock.state_dict())
    assert [table.target_of(key).parameter for key in more] == more
    assert {key for key in more if not table.ignores(key)} == set(loading["unexpected_keys"]) == {more[2]}


def test_a_key_of_the_body_alone_gets_the_prefix_of_the_whole_model(tmp_path: Path) -> None:
    stock, tensors = written("qwen3_moe", tmp_path)
    table = ConversionTable(stock, stock.state_dict())
    assert table.target_of("layers.0.input_layernorm.weight").parameter == "model.layers.0.input_layernorm.weight"
    bodies = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
    save_file(bodies, tmp_path / WEIGHTS, metadata={"format": "pt"})
    loaded = type(stock).from_pretrained(tmp_path)
    assert all(torch.equal(each, stock.state_dict()[name]) for name, each in loaded.state_dict().items())


@pytest.mark.parametrize("model_type", TYPES)
def test_the_reversed_tables_give_the_tensors_that_stock_writes(model_type: str, tmp_path: Path) -> None:
    _, tensors = written(model_type, tmp_path)
    model = construct(tiny_config(model_type)).model
    state = {name: each for name, each in model.state_dict().items() if name not in model.all_tied_weights_keys}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint_tensors(model, state).items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert found.items() <= wanted.items()
    assert not set(wanted) - set(found) or model_type == "ernie4_5_vl_moe", "the towers are left out"


def test_numbers_in_names_are_sorted_by_value() -> None:
    names = ["layers.10.a", "layers.9.b", "layers.9.a", "embed"]
    assert in_stock_order(names) == ["embed", "layers.9.a", "layers.9.b", "layers.10.a"]
