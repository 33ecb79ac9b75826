"""Experts modules are recognised by what they hold, in every form that transformers has."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from zipmoe.model.checkpoint.expert_modules import find_experts
from zipmoe.model.checkpoint.skeleton import Skeleton
from zipmoe.model.families.random_weights import random_model
from zipmoe.model.families.twin import tiny_config
from zipmoe.model.stock.experts_module import (
    activation_of,
    expert_children,
    flags_of,
    stacked_matrices,
    whole_layer_reason,
)
from zipmoe.model.stock.model_class import construct, text_model_class

FORMS = {
    "qwen3_moe": (("gate_up_proj", "down_proj"), ""),
    "nemotron_h": (("up_proj", "down_proj"), ""),
    "gpt_oss": (("gate_up_proj", "down_proj"), ""),
    "switch_transformers": (("wi.weight", "wo.weight"), ""),
    "nllb-moe": (("fc1.weight", "fc2.weight"), "parameters beside their matrices"),
    "dbrx": (("mlp.w1", "mlp.v1", "mlp.w2"), "one below the other"),
    "longcat_flash": (("gate_up_proj", "down_proj"), "experts without matrices"),
    "jetmoe": (("weight",), "one linear of the experts"),
    "muse_spark": (("gate_up_proj", "down_proj"), "normalises the output"),
}


@pytest.mark.parametrize("model_type", FORMS)
def test_each_form_is_found_with_its_matrices(model_type: str) -> None:
    names, reason = FORMS[model_type]
    model = construct(tiny_config(model_type)).model
    modules = find_experts(Skeleton(model_type, model))
    assert {tuple(matrix.spec.name for matrix in module.experts[0]) for module in modules} == {names}
    assert {len(module.experts) for module in modules} == {8}
    for module in modules:
        found = whole_layer_reason(model.get_submodule(module.path))
        assert reason in found and bool(reason) == bool(found)


def test_what_holds_no_experts_is_not_taken_for_them() -> None:
    convolution = nn.Conv1d(4, 4, 3, groups=4)
    convolution.num_experts = 4  # type: ignore[assignment]
    assert stacked_matrices(convolution) == ()
    assert stacked_matrices(nn.Linear(4, 4)) == ()
    layers = nn.ModuleDict({"a": nn.Linear(4, 4), "expert_1": nn.Linear(4, 4)})
    assert expert_children(layers) == {} and expert_children(nn.ModuleList([nn.Linear(4, 4)])) == {}
    stack = nn.Module()
    stack.weight = nn.Parameter(torch.empty(4, 2, 2))
    assert stacked_matrices(stack) == (), "no attribute says that 4 is the number of experts"


def test_flags_are_those_of_transformers() -> None:
    model = construct(tiny_config("gpt_oss")).model
    module = next(each for each in model.modules() if stacked_matrices(each))
    flags = flags_of(module)
    assert flags.has_bias and flags.is_transposed and flags.has_gate and not flags.has_post_expert_norm


@pytest.mark.parametrize("model_type", ["qwen3_moe", "nemotron_h"])
def test_an_expert_is_two_matrices_with_the_activation_between_them(model_type: str) -> None:
    model = random_model(*text_model_class(tiny_config(model_type)), seed=0)
    module = next(each for each in model.modules() if stacked_matrices(each))
    activation = activation_of(module)
    assert activation is not None and flags_of(module).has_gate == (model_type == "qwen3_moe")
    first, second = (module.get_parameter(matrix.parameter)[3] for matrix in stacked_matrices(module))
    rows = torch.randn(1, first.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode():
        found = module(rows, torch.tensor([[3]]), torch.ones(1, 1, dtype=torch.bfloat16))
        assert torch.equal(found, linear(activation(linear(rows, first)), second))


def test_a_module_that_is_one_linear_has_no_activation() -> None:
    model = construct(tiny_config("jetmoe")).model
    assert activation_of(next(each for each in model.modules() if stacked_matrices(each))) is None
