"""Stock's own experts modules with matrices on demand: calls of several passes, one after the other."""

from __future__ import annotations

from collections.abc import Generator, Mapping

import pytest
import torch
from torch import nn
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts

from tests.model.experts.test_routed_experts import EXPERTS, HIDDEN, INTERMEDIATE, packed_config
from zipmoe.errors import CorruptData
from zipmoe.model.experts.device import HostPlacement
from zipmoe.model.experts.lazy_experts import LazyCall, LazyExperts, chosen_experts
from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.experts.supply import ExpertSupply
from zipmoe.model.meeting import Coroutine, Meeting
from zipmoe.planning.workspace import COPIED_EXPERT_BYTES
from zipmoe.store.format.layout import ExpertSpec, TensorSpec

SPEC = ExpertSpec((TensorSpec("gate_up_proj", 2 * INTERMEDIATE, HIDDEN), TensorSpec("down_proj", HIDDEN, INTERMEDIATE)))


class Lender(InProcessProvider):
    """Gives experts, notes which were asked for, and fails at one of them."""

    def __init__(self, stock: nn.Module) -> None:
        self._stacks = [stock.get_parameter(tensor.name) for tensor in SPEC.tensors]
        self.asked: list[tuple[int, ...]] = []
        self.breaks_at: int | None = None

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        self.asked.append(tuple(rows))
        for expert in rows:
            if expert == self.breaks_at:
                raise CorruptData("checksum")
            yield Arrival(expert, tuple(stack[expert] for stack in self._stacks))


@pytest.fixture
def stock_and_lazy() -> tuple[nn.Module, LazyExperts, Lender]:
    torch.manual_seed(0)
    stock = Qwen2MoeExperts(packed_config()).bfloat16().eval().requires_grad_(False)
    for parameter in stock.parameters():
        parameter.normal_(0, 0.3)
    with torch.device("meta"):
        module = Qwen2MoeExperts(packed_config()).bfloat16().eval()
    lender = Lender(stock)
    return stock, LazyExperts(0, EXPERTS, module, SPEC, ExpertSupply(lender, HostPlacement()), "a test"), lender


def call(*choices: tuple[int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, the two experts that each chooses, and their weights."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(choices), HIDDEN, generator=generator).bfloat16()
    return rows, torch.tensor(choices), torch.rand(len(choices), 2, generator=generator).bfloat16()


CALLS = [call((0, 4), seed=1), call((4, 2), (2, 0), seed=2), call((5, 0), seed=3)]


@pytest.mark.parametrize(("kept", "asked"), [(4, [(0, 2, 4, 5)]), (3, [(0, 4), (2, 4), (0, 5)])])
def test_calls_that_meet_share_the_experts_that_can_be_kept(
    kept: int,
    asked: list[tuple[int, ...]],
    stock_and_lazy: tuple[nn.Module, LazyExperts, Lender],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock, lazy, lender = stock_and_lazy
    monkeypatch.setattr(lazy, "_together", kept)
    calls = [LazyCall(each, {}, chosen_experts(list(each), EXPERTS)) for each in CALLS]
    lazy.compute(calls)
    assert all(torch.equal(each.result, stock(*arguments)) for each, arguments in zip(calls, CALLS, strict=True))
    assert lender.asked == asked
    assert COPIED_EXPERT_BYTES // SPEC.weight_bytes > 4


def test_calls_that_failed_may_be_computed_again(stock_and_lazy: tuple[nn.Module, LazyExperts, Lender]) -> None:
    stock, lazy, lender = stock_and_lazy
    calls = [LazyCall(each, {}, chosen_experts(list(each), EXPERTS)) for each in CALLS]
    lender.breaks_at = 5
    with pytest.raises(CorruptData):
        lazy.compute(calls)
    lazy.compute(calls[:2])
    lender.breaks_at = None
    lazy.compute(calls[2:])
    assert all(torch.equal(each.result, stock(*arguments)) for each, arguments in zip(calls, CALLS, strict=True))


def test_a_call_may_be_left_to_somebody_else(stock_and_lazy: tuple[nn.Module, LazyExperts, Lender]) -> None:
    stock, lazy, lender = stock_and_lazy
    waiting = Coroutine(lambda: lazy.forward(*CALLS[0]), single_row=False)
    Meeting([lazy]).advance([waiting], 0)
    assert waiting.place is lazy
    assert not lender.asked
    waiting.call.result = "computed elsewhere"
    waiting.go_on()
    assert waiting.result == "computed elsewhere"
    assert torch.equal(lazy.forward(*CALLS[0]), stock(*CALLS[0]))
