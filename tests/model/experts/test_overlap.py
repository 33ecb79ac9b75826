from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import pytest
import torch

from tests.model.conftest import Twin, TwinOf
from tests.model.interposed import take_experts_from
from zipmoe.model.experts.overlap import OverlappedShared
from zipmoe.model.experts.provider import Arrival
from zipmoe.model.passes.ragged import BatchRow, RaggedModel
from zipmoe.model.passes.sequence import Sequence as ModelSequence


class Listener:
    """Stands between the model and its provider, and notes the order of what happens."""

    guess_depth = 0
    wants_announcements = True

    def __init__(self, twin: Twin, patch: pytest.MonkeyPatch) -> None:
        self._inner = twin.provider
        self.heard: list[tuple[str, int, tuple[int, ...]]] = []
        take_experts_from(self, twin.built, patch.setattr)

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        self.heard.append(("needed", layer, tuple(sorted(rows))))
        return self._inner.experts(layer, rows)

    def prefetch(self, layer: int, guesses: Sequence[int]) -> None:
        raise AssertionError("its depth is 0")

    def announce(self, layer: int, experts: Sequence[int]) -> None:
        self.heard.append(("announced", layer, tuple(sorted(experts))))


def test_a_block_whose_shared_expert_comes_first_announces_exactly_what_its_gate_will_choose(
    twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = twin_of("qwen2_moe")
    listener = Listener(twin, monkeypatch)
    model = RaggedModel(twin.built, twin.linears, 8)
    prompt = model.prompt([5, 6, 7, 8, 9], 0, [0])
    while prompt.layers_left:
        prompt.advance(1)
    prompt.finish()
    listener.heard.clear()
    model.compute([BatchRow(11, 5, [0])])
    for layer in range(len(twin.layers)):
        announced, needed = listener.heard[2 * layer : 2 * layer + 2]
        assert announced == ("announced", layer, needed[2])
        assert needed[0] == "needed"


@pytest.mark.parametrize("family", ["deepseek_v2", "glm4_moe"])
def test_a_shared_expert_that_comes_last_is_computed_once_while_the_others_are_read(
    family: str, twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = twin_of(family)
    listener = Listener(twin, monkeypatch)
    computed: list[str] = []
    for name, module in twin.built.model.named_modules():
        if name.endswith("shared_experts.gate_proj"):
            module.register_forward_hook(lambda *_: computed.append(listener.heard[-1][0]))
    ours, ids = ModelSequence(twin.built), [5, 6, 7, 8, 9, 10]
    got = ours.prefill(ids).logits
    assert computed and set(computed) == {"needed"}
    assert len(computed) == len([each for each in listener.heard if each[0] == "needed"])
    with torch.inference_mode():
        assert torch.equal(got, twin.stock(torch.tensor([ids])).logits[0, -1])


def test_an_output_that_was_never_fetched_is_not_given_for_other_rows_at_the_same_address() -> None:
    beside = OverlappedShared(lambda hidden: hidden + 1)
    beside.compute(torch.ones(3, 64))  # the provider fails now, and the rows are freed
    others = [torch.zeros(1, 3, 64) for _ in range(8)]
    assert all(torch.equal(beside(each), torch.ones(1, 3, 64)) for each in others)
