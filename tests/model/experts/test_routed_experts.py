from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GptOssConfig, Qwen2MoeConfig, SwitchTransformersConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersExperts

from zipmoe.errors import CorruptData, InternalError, UnsupportedModel
from zipmoe.model.experts.device import ExpertPlacement, HostPlacement
from zipmoe.model.experts.ffn import DirectFfn, Group, StockFfn, SumDtype, dense_names
from zipmoe.model.experts.proof import prove_ffn
from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.experts.supply import ExpertSupply
from zipmoe.model.linear.matrices import Matrices
from zipmoe.store.format.layout import ExpertSpec, TensorSpec

HIDDEN, INTERMEDIATE, EXPERTS = 64, 48, 6


def packed_config() -> Qwen2MoeConfig:
    config = Qwen2MoeConfig(hidden_size=HIDDEN, moe_intermediate_size=INTERMEDIATE, num_experts=EXPERTS)
    config._experts_implementation = "eager"
    return config


def gpt_oss_config() -> GptOssConfig:
    config = GptOssConfig(hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_local_experts=EXPERTS)
    config._experts_implementation = "eager"
    return config


def switch_config() -> SwitchTransformersConfig:
    return SwitchTransformersConfig(d_model=HIDDEN, d_ff=INTERMEDIATE, num_experts=EXPERTS)


FORMS: dict[str, tuple[Callable[[Any], nn.Module], Callable[[], Any], tuple[str, str]]] = {
    "packed": (Qwen2MoeExperts, packed_config, ("gate_up_proj", "down_proj")),
    "transposed": (GptOssExperts, gpt_oss_config, ("gate_up_proj", "down_proj")),
    "separate": (SwitchTransformersExperts, switch_config, ("wi.weight", "wo.weight")),
}


class LendingProvider(InProcessProvider):
    """Gives experts in a chosen order, and remembers whether it was closed."""

    def __init__(self, experts: list[Matrices]) -> None:
        self.stored = experts
        self.arrange: Callable[[Sequence[int]], Sequence[int]] = list
        self.closed = 0
        self.asked: list[int] = []

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        self.asked = list(rows)
        try:
            for expert in self.arrange(self.asked):
                yield Arrival(expert, self.stored[expert])
        finally:
            self.closed += 1


def stock_and_ours(
    form: str, ffn_kind: str = "chosen", placement: ExpertPlacement | None = None
) -> tuple[nn.Module, RoutedExperts, LendingProvider]:
    placement = placement or HostPlacement()
    experts_class, make_config, names = FORMS[form]
    torch.manual_seed(0)
    stock = experts_class(make_config()).bfloat16().eval().requires_grad_(False)
    for parameter in stock.parameters():
        parameter.normal_(0, 0.3)
    stored: list[Matrices]
    if form == "separate":
        stored = [tuple(stock[f"expert_{i}"].get_parameter(name) for name in names) for i in range(EXPERTS)]
    else:
        stored = [tuple(stock.get_parameter(name)[i] for name in names) for i in range(EXPERTS)]
    spec = ExpertSpec(tuple(TensorSpec(name, *matrix.shape) for name, matrix in zip(names, stored[0], strict=True)))
    with torch.device("meta"):
        template = experts_class(make_config()).bfloat16()
    dense = dense_names(template, spec)
    ffn = prove_ffn(template, spec, torch.device("cpu"))
    if ffn_kind == "stock":
        ffn = StockFfn(template, spec)
    lender = LendingProvider(stored)
    vectors = {name: nn.Parameter(stock.get_parameter(name), requires_grad=False) for name in dense}
    return stock, RoutedExperts(0, ffn, ExpertSupply(lender, placement), vectors), lender


def routing(form: str, tokens: int, top_k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden_states = torch.randn(tokens, HIDDEN, generator=generator).bfloat16()
    if form == "separate":
        chosen = torch.randint(EXPERTS, (tokens,), generator=generator)
        one_hot = nn.functional.one_hot(chosen, EXPERTS) * (torch.rand(tokens, 1, generator=generator) < 0.8)
        return hidden_states, one_hot[:, None, :], torch.rand(tokens, 1, generator=generator).bfloat16()
    order = torch.rand(tokens, EXPERTS, generator=generator).argsort(dim=-1)
    weights = torch.rand(tokens, top_k, generator=generator)
    return hidden_states, order[:, :top_k], weights if seed % 2 else weights.bfloat16()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ffn_kind", ["stock", "chosen"])
@pytest.mark.parametrize("tokens", [1, 2, 5, 40])
def test_the_sum_equals_stock_in_every_arrival_order(form: str, ffn_kind: str, tokens: int) -> None:
    stock, ours, lender = stock_and_ours(form, ffn_kind)
    for seed in range(4):
        inputs = routing(form, tokens, top_k=3, seed=seed)
        expected = stock(*inputs)
        for arrange in (list, lambda ids: ids[::-1], lambda ids: [*ids[2::2], *ids[1::2], *ids[:1]]):
            lender.arrange = arrange
            assert torch.equal(ours(*inputs), expected)


def test_the_direct_way_is_chosen_for_packed_families_only() -> None:
    assert isinstance(stock_and_ours("packed")[1].ffn, DirectFfn)
    assert isinstance(stock_and_ours("transposed")[1].ffn, DirectFfn)
    assert isinstance(stock_and_ours("separate")[1].ffn, StockFfn)


def test_stock_code_is_kept_where_the_direct_way_gives_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    other_gate = lambda self, gate_up: gate_up.chunk(2, dim=-1)[1]  # noqa: E731
    monkeypatch.setattr(Qwen2MoeExperts, "_apply_gate", other_gate)
    stock, ours, _ = stock_and_ours("packed")
    assert isinstance(ours.ffn, StockFfn)
    inputs = routing("packed", 7, 3, 0)
    assert torch.equal(ours(*inputs), stock(*inputs))


def test_a_token_that_chooses_an_expert_twice_is_computed_twice() -> None:
    stock, ours, _ = stock_and_ours("packed")
    for selected in ([[4, 4, 1]], [[4, 4, 1], [1, 1, 1], [0, 4, 0]]):
        rows = len(selected)
        inputs = (torch.randn(rows, HIDDEN).bfloat16(), torch.tensor(selected), torch.rand(rows, 3).bfloat16())
        assert torch.equal(ours(*inputs), stock(*inputs))


def test_nobody_is_asked_when_no_token_has_an_expert() -> None:
    _, ours, lender = stock_and_ours("separate")
    hidden_states = torch.randn(3, HIDDEN).bfloat16()
    result = ours(hidden_states, torch.zeros(3, 1, EXPERTS, dtype=torch.long), torch.rand(3, 1).bfloat16())
    assert torch.equal(result, torch.zeros_like(hidden_states))
    assert lender.asked == []


def test_only_the_experts_that_are_hit_are_asked_for_in_ascending_order() -> None:
    _, ours, lender = stock_and_ours("packed")
    ours(torch.randn(2, HIDDEN).bfloat16(), torch.tensor([[5, 1], [1, 3]]), torch.rand(2, 2).bfloat16())
    assert lender.asked == [1, 3, 5]


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda ids: ids[1:], r"left out experts \[1\] of MoE layer 0"),
        (lambda ids: [*ids, ids[0]], "gave expert 1 of MoE layer 0 without need"),
        (lambda ids: [0, *ids], "gave expert 0 of MoE layer 0 without need"),
    ],
)
def test_a_provider_that_miscounts_is_an_internal_error(arrange: Callable[[Any], Any], message: str) -> None:
    _, ours, lender = stock_and_ours("packed")
    lender.arrange = arrange
    with pytest.raises(InternalError, match=message):
        ours(torch.randn(1, HIDDEN).bfloat16(), torch.tensor([[5, 1]]), torch.rand(1, 2).bfloat16())
    assert lender.closed == 1


class RecordingPlacement(HostPlacement):
    def __init__(self) -> None:
        self.events: list[str] = []

    def load(self, matrices: Matrices) -> Matrices:
        self.events.append("load")
        return matrices

    def settle(self) -> None:
        self.events.append("settle")


def test_memory_is_settled_before_the_provider_may_take_it_back() -> None:
    placement = RecordingPlacement()
    _, ours, lender = stock_and_ours("packed", placement=placement)

    def interrupted(ids: Sequence[int]) -> Iterator[int]:
        placement.events.append("lend")
        yield ids[0]
        placement.events.append("lend")
        yield ids[1]
        raise CorruptData("bad checksum")

    lender.arrange = interrupted  # type: ignore[assignment]
    with pytest.raises(CorruptData):
        ours(torch.randn(1, HIDDEN).bfloat16(), torch.tensor([[0, 1, 2]]), torch.rand(1, 3).bfloat16())
    assert placement.events == ["lend", "load", "settle", "lend", "load", "settle", "settle"]


@pytest.mark.parametrize("form", FORMS)
def test_an_error_in_the_computation_closes_the_provider_and_leaves_the_module_usable(form: str) -> None:
    stock, ours, lender = stock_and_ours(form, "stock")
    inputs = routing(form, 4, 2, seed=2)
    good = lender.stored
    lender.stored = [(torch.zeros(3, 3).bfloat16(),) * 2] * EXPERTS
    with pytest.raises(RuntimeError):
        ours(*inputs)
    assert lender.closed == 1
    lender.stored = good
    assert torch.equal(ours(*inputs), stock(*inputs))


@pytest.mark.parametrize("form", FORMS)
def test_no_matrix_is_kept_after_a_pass(form: str) -> None:
    _, ours, lender = stock_and_ours(form, "stock")
    lender.stored = [tuple(matrix.clone() for matrix in expert) for expert in lender.stored]
    kept = [weakref.ref(matrix) for expert in lender.stored for matrix in expert]
    ours(*routing(form, 4, 2, seed=3))
    lender.stored.clear()
    assert [reference() for reference in kept] == [None] * len(kept)


def test_outputs_are_summed_as_soon_as_all_lower_experts_are_there() -> None:
    _, ours, lender = stock_and_ours("packed")
    inner, outputs, alive = ours.ffn, [], []

    def counted(groups: Sequence[Group], *arguments: Any) -> list[torch.Tensor]:
        alive.append(sum(reference() is not None for reference in outputs))
        computed = inner.together(groups, *arguments)
        outputs.extend(map(weakref.ref, computed))
        return computed

    ours.ffn = SimpleNamespace(together=counted, takes_packed=True, sum_dtype=SumDtype.ROWS)
    inputs = routing("packed", 30, 3, seed=1)
    ours(*inputs)
    assert max(alive) == 0
    alive.clear()
    lender.arrange = lambda ids: [*ids[1:4], ids[0], *ids[4:]]
    ours(*inputs)
    assert alive == [0, 1, 2, 3, 0, 0]


def test_experts_of_another_shape_than_the_module_are_refused() -> None:
    spec = ExpertSpec((TensorSpec("gate_up_proj", 96, 32), TensorSpec("down_proj", 64, 48)))
    with torch.device("meta"), pytest.raises(UnsupportedModel, match=r"gate_up_proj of shape \(96, 64\)"):
        StockFfn(Qwen2MoeExperts(packed_config()), spec)
    with torch.device("meta"), pytest.raises(UnsupportedModel, match="Linear has gate_up_proj of shape None"):
        StockFfn(nn.Linear(3, 3), spec)


@pytest.mark.parametrize("form", FORMS)
def test_prompts_together_have_the_bits_of_each_alone(form: str) -> None:
    _, ours, lender = stock_and_ours(form)
    rows = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(2)).bfloat16()
    weights = torch.rand(9, 1, generator=torch.Generator().manual_seed(3)).bfloat16()
    sizes = [3, 1, 4, 1]  # not by size: each has to get its own
    groups = list(zip(torch.split(rows, sizes), torch.split(weights, sizes), strict=True))
    biases = ours.vectors(0)
    with torch.inference_mode():
        together = ours.ffn.together(groups, lender.stored[0], biases)
        for mine, group in zip(together, groups, strict=True):
            assert torch.equal(mine, ours.ffn(*group, lender.stored[0], biases))
