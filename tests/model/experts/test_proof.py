"""The way, the dtype and the order of the sum of a layer's experts are found by computing beside stock's module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zipmoe.errors import UnsupportedModel
from zipmoe.model.experts.ffn import DirectFfn, ExpertFfn, StockFfn, SumDtype
from zipmoe.model.experts.proof import kind_of, prove_ffn
from zipmoe.model.families.twin import tiny_config
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.stock.experts_module import expert_children, stacked_matrices
from zipmoe.model.stock.model_class import construct
from zipmoe.store.format.layout import ExpertSpec, TensorSpec

CPU = torch.device("cpu")


def experts_of(model_type: str) -> list[nn.Module]:
    model = construct(tiny_config(model_type)).model
    return [module for module in model.modules() if stacked_matrices(module) or expert_children(module)]


def spec_of(module: nn.Module) -> ExpertSpec:
    if children := expert_children(module):
        named = next(iter(children.values())).named_parameters()
        return ExpertSpec(tuple(TensorSpec(name, *each.shape) for name, each in named if each.ndim == 2))
    return ExpertSpec(tuple(TensorSpec(each.parameter, each.rows, each.cols) for each in stacked_matrices(module)))


def proven(module: nn.Module) -> ExpertFfn:
    return prove_ffn(module, spec_of(module), CPU, Linears())


@pytest.mark.parametrize(
    ("model_type", "kind", "sum_dtype"),
    [
        ("qwen3_moe", DirectFfn, SumDtype.ROWS),
        ("gpt_oss", DirectFfn, SumDtype.ROWS),
        ("aria", DirectFfn, SumDtype.ROWS),
        ("nemotron_h", DirectFfn, SumDtype.WEIGHTS),
        ("inkling2", DirectFfn, SumDtype.FLOAT32),
        ("switch_transformers", StockFfn, SumDtype.ROWS),
    ],
)
def test_the_way_and_the_dtype_of_the_sum_are_found(
    model_type: str, kind: type[ExpertFfn], sum_dtype: SumDtype
) -> None:
    ffn = proven(experts_of(model_type)[0])
    assert type(ffn) is kind and ffn.sum_dtype is sum_dtype


@pytest.mark.parametrize("model_type", ["dbrx", "longcat_flash", "nllb-moe", "jetmoe", "muse_spark"])
def test_more_than_a_sum_of_experts_is_told_by_name(model_type: str) -> None:
    module = experts_of(model_type)[0]
    with pytest.raises(UnsupportedModel, match=type(module).__name__):
        proven(module)


def test_a_step_that_only_the_comparison_shows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = experts_of("qwen3_moe")[0]
    forward = type(module).forward
    monkeypatch.setattr(type(module), "forward", lambda self, *arguments: forward(self, *arguments) * 1.5)
    # A factor on the sum is right for one expert, and wrong for a sum of rounded outputs.
    with pytest.raises(UnsupportedModel, match="is more than a sum of its experts: with 1 rows"):
        proven(module)


def test_layers_of_one_class_with_other_limits_are_told_apart() -> None:
    first, second = experts_of("deepseek_v4")[:2]
    spec = spec_of(first)
    assert kind_of(first, spec) == kind_of(second, spec)
    second.limit = 3.0  # type: ignore[assignment]
    assert kind_of(first, spec) != kind_of(second, spec)
