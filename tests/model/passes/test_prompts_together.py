from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping

import pytest
import torch

from tests.model.conftest import Twin, TwinOf
from tests.model.interposed import take_experts_from
from tests.model.passes.test_ragged import DECODERS, Ours, StockPasses, prompt
from zipmoe.errors import CorruptData
from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.passes.prompt_pass import PromptPass

PROMPTS = {"a": prompt(37, 1), "b": prompt(3, 2), "z": prompt(50, 3), "c": prompt(1, 4)}


class Watched(InProcessProvider):
    """A provider in front of another one, which notes what is asked for, and fails where it is told to."""

    def __init__(self, inner: InProcessProvider) -> None:
        self._inner = inner
        self.asked: Counter[int] = Counter()
        self.breaks_at: int | None = None

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        self.asked[layer] += 1
        for number, arrival in enumerate(self._inner.experts(layer, rows)):
            if layer == self.breaks_at and number == 1:
                raise CorruptData("a chunk is damaged")
            yield arrival


@pytest.fixture
def watched(twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[Twin, Watched]:
    twin = twin_of(request.param)
    provider = Watched(twin.provider)
    take_experts_from(provider, twin.built, monkeypatch.setattr)
    return twin, provider


def begun(ours: Ours) -> dict[str, PromptPass]:
    return {name: ours.model.prompt(tokens, *ours.room(name, len(tokens))) for name, tokens in PROMPTS.items()}


@pytest.mark.parametrize("watched", DECODERS, indirect=True)
def test_prompts_that_advance_together_give_what_stock_gives_and_ask_once(watched: tuple[Twin, Watched]) -> None:
    twin, provider = watched
    ours = Ours(twin)
    passes = begun(ours)
    while any(each.layers_left for each in passes.values()):
        ours.model.advance(list(passes.values()), 1)
    assert set(provider.asked.values()) == {1}
    assert len(provider.asked) == len(twin.built.experts)
    for name, tokens in PROMPTS.items():
        stock = StockPasses(twin)
        assert torch.equal(passes[name].finish().logits, stock(tokens)), name
        assert torch.equal(ours.rows(**{name: 5})[name], stock([5])), name


@pytest.mark.parametrize("watched", ["qwen2_moe"], indirect=True)
def test_prompts_that_are_not_equally_far_share_nothing_and_stay_right(watched: tuple[Twin, Watched]) -> None:
    twin, _ = watched
    ours = Ours(twin)
    passes = begun(ours)
    passes["a"].advance(1)
    ours.model.advance(list(passes.values()), 100)
    for name, tokens in PROMPTS.items():
        assert torch.equal(passes[name].finish().logits, StockPasses(twin)(tokens)), name


@pytest.mark.parametrize("watched", ["qwen2_moe", "deepseek_v2"], indirect=True)
def test_after_an_error_all_passes_are_over_and_may_be_begun_anew(watched: tuple[Twin, Watched]) -> None:
    twin, provider = watched
    ours = Ours(twin)
    failed = begun(ours)
    provider.breaks_at = 0
    with pytest.raises(CorruptData):
        ours.model.advance(list(failed.values()), 100)
    provider.breaks_at = None
    ours = Ours(twin)
    passes = begun(ours)
    ours.model.advance(list(passes.values()), 100)
    for name, tokens in PROMPTS.items():
        assert torch.equal(passes[name].finish().logits, StockPasses(twin)(tokens)), name
