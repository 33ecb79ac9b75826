"""Requests with caches of their own that are computed together: bits of each alone, and fewer fetches."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Mapping

import pytest
import torch

from tests.model.conftest import Twin, TwinOf
from tests.model.interposed import take_experts_from
from tests.model.known_orders import kernels_have_torchs_bits
from tests.model.passes.test_ragged import DECODERS, prompt
from tests.model.tiny import RECURRENT, VOCABULARY
from zipmoe.errors import CorruptData, InvalidRequest
from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.linear.linear_module import NativeLinear, RowCall
from zipmoe.model.linear.linear_order import OrderTable
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.passes.joined import JoinedModel, JoinedRequest
from zipmoe.model.passes.sequence import Sequence

PROMPTS = {"a": prompt(37, 1), "b": prompt(3, 2), "z": prompt(50, 3), "c": prompt(1, 4)}


class Counted(InProcessProvider):
    """Stands in front of a twin's provider, counts, and fails at a chosen layer pass."""

    def __init__(self, twin: Twin) -> None:
        self._inner = twin.provider
        self.passes = 0
        self.fetches = 0
        self.fails_in: int | None = None
        self.broken: set[tuple[int, int]] = set()

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        self.passes += 1
        self.fetches += len(rows)
        fails = self.fails_in == 0
        self.fails_in = None if self.fails_in is None or fails else self.fails_in - 1
        for number, arrival in enumerate(self._inner.experts(layer, rows)):
            if (fails and number == 1) or (layer, arrival.expert) in self.broken:
                raise CorruptData("checksum")
            yield arrival


@pytest.fixture
def counted(
    twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> tuple[Twin, Counted, JoinedModel]:
    twin = twin_of(request.param)
    provider = Counted(twin)
    take_experts_from(provider, twin.built, monkeypatch.setattr)
    return twin, provider, JoinedModel(twin.built)


def prefilled(model: JoinedModel, *names: str) -> list[JoinedRequest]:
    requests = [model.begin(PROMPTS[name]) for name in names]
    model.advance(requests, model.layer_count)
    assert all(each.prompt is not None for each in requests)
    return requests


def alone(twin: Twin, name: str, tokens: list[int]) -> list[torch.Tensor]:
    sequence = Sequence(twin.built)
    return [sequence.prefill(PROMPTS[name]).logits, *(sequence.step(token) for token in tokens)]


def logits_of(request: JoinedRequest) -> torch.Tensor:
    assert request.prompt is not None
    return request.prompt.logits


def equal(got: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("counted", [*DECODERS, *RECURRENT], indirect=True)
def test_requests_that_join_and_leave_have_the_bits_of_each_alone(counted: tuple[Twin, Counted, JoinedModel]) -> None:
    twin, _, model = counted
    joins = {"a": 0, "b": 0, "z": 3, "c": 5}
    chance = random.Random(7)
    running: dict[str, JoinedRequest] = {}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in PROMPTS}
    fed: dict[str, list[int]] = {name: [] for name in PROMPTS}
    sizes = set()
    for step in range(14):
        if step == 11:
            running.pop("b").close()
        answering = [name for name, each in running.items() if each.prompt is not None]
        tokens = [chance.randrange(3, VOCABULARY) for _ in answering]
        sizes.add(len(answering))
        if answering:
            for name, token, logits in zip(
                answering, tokens, model.step([running[name] for name in answering], tokens), strict=True
            ):
                fed[name].append(token)
                seen[name].append(logits)
        running.update({name: model.begin(PROMPTS[name]) for name, first in joins.items() if first == step})
        unfinished = {name: each for name, each in running.items() if each.prompt is None}
        model.advance(list(unfinished.values()), 1)
        for name, each in unfinished.items():
            if each.prompt is not None:
                seen[name].append(each.prompt.logits)
    assert sizes == {0, 2, 3, 4}
    for name in PROMPTS:
        assert equal(seen[name], alone(twin, name, fed[name])), name


@pytest.mark.parametrize("counted", ["qwen2_moe", "gpt_oss", "glm4_moe", *RECURRENT], indirect=True)
def test_a_step_asks_for_each_expert_once_and_each_known_linear_computes_once(
    counted: tuple[Twin, Counted, JoinedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    twin, provider, model = counted
    tokens = {"a": [5, 6, 7], "b": [8, 9, 10], "z": [5, 6, 7]}
    expected = [alone(twin, name, each) for name, each in tokens.items()]
    apart = (provider.passes, provider.fetches)
    provider.passes = provider.fetches = 0
    met: Counter[NativeLinear] = Counter()

    def noted(module: NativeLinear, calls: list[RowCall]) -> None:
        assert len(calls) == 3
        met[module] += 1
        compute(module, calls)

    compute = NativeLinear.compute
    monkeypatch.setattr(NativeLinear, "compute", noted)
    requests = prefilled(model, *tokens)
    got = [[logits_of(request)] for request in requests]
    for step in zip(*tokens.values(), strict=True):
        for request, logits in zip(got, model.step(requests, step), strict=True):
            request.append(logits)
    assert all(equal(one, other) for one, other in zip(got, expected, strict=True))
    assert 3 * provider.passes == apart[0]
    assert provider.fetches < apart[1] * 0.9
    known = [each for each in twin.built.model.modules() if isinstance(each, NativeLinear) and each.knows_single_rows()]
    assert met == dict.fromkeys(known, 3)
    if kernels_have_torchs_bits():
        assert len(known) >= 3 * len(twin.built.experts) + 1


@pytest.mark.parametrize("counted", ["deepseek_v2"], indirect=True)
def test_where_no_linear_is_known_the_experts_still_meet(
    counted: tuple[Twin, Counted, JoinedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    twin, provider, _ = counted
    unknown = Linears(OrderTable(orders=()))
    for module in twin.built.model.modules():
        if isinstance(module, NativeLinear):
            monkeypatch.setattr(module, "linears", unknown)
            monkeypatch.setattr(module, "_meet", None)
    model = JoinedModel(twin.built)
    expected = [alone(twin, name, [5]) for name in ("a", "b")]
    provider.passes = 0
    requests = prefilled(model, "a", "b")
    got = zip((logits_of(each) for each in requests), model.step(requests, [5, 5]), strict=True)
    assert all(equal(list(one), other) for one, other in zip(got, expected, strict=True))
    assert provider.passes == 2 * len(twin.layers)


@pytest.mark.parametrize("counted", ["qwen2_moe", *RECURRENT], indirect=True)
def test_a_prompt_goes_on_where_it_stopped_whatever_is_computed_between(
    counted: tuple[Twin, Counted, JoinedModel],
) -> None:
    twin, _, model = counted
    [answer, gone] = prefilled(model, "b", "c")
    long = model.begin(PROMPTS["z"], scored=0)
    other = model.begin(PROMPTS["a"], scored=0)
    seen, advances = [], 0
    while long.prompt is None:
        model.advance([each for each in (long, other) if each.prompt is None], 1)
        seen += model.step([answer], [7 + advances])
        advances += 1
        if advances == 1:
            model.step([gone, answer], [5, 99])
            seen, _ = [], gone.close()
            answer = prefilled(model, "b")[0]
            seen += model.step([answer], [7])
    assert advances == model.layer_count
    assert equal(seen, alone(twin, "b", [7 + number for number in range(advances)])[1:])
    for name, request in (("z", long), ("a", other)):
        assert request.prompt is not None
        whole = Sequence(twin.built).prefill(PROMPTS[name], prompt_logprobs=0)
        assert torch.equal(request.prompt.logits, whole.logits), name
        assert request.prompt.scores is not None and whole.scores is not None
        assert request.prompt.scores.logprobs == whole.scores.logprobs, name


@pytest.mark.parametrize("counted", ["qwen2_moe", "deepseek_v2", *RECURRENT], indirect=True)
@pytest.mark.parametrize("fails_in", [0, 1, 3, 5])
def test_a_failed_step_goes_on_where_it_stopped(counted: tuple[Twin, Counted, JoinedModel], fails_in: int) -> None:
    twin, provider, model = counted
    tokens = [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
    names = ["a", "b", "z"]
    requests = prefilled(model, *names)
    got: list[list[torch.Tensor]] = [[logits_of(each)] for each in requests]
    provider.fails_in = fails_in
    retries = 0
    for step in tokens:
        try:
            results = model.step(requests, step)
        except CorruptData:
            retries += 1
            passes = provider.passes
            results = [model.step([request], [token])[0] for request, token in zip(requests, step, strict=True)]
            layers = model.layer_count
            assert provider.passes - passes == 3 * (layers - fails_in % layers), "only the rest is computed again"
        for request, logits in zip(got, results, strict=True):
            request.append(logits)
    assert retries == 1
    for index, name in enumerate(names):
        assert equal(got[index], alone(twin, name, [step[index] for step in tokens])), name


@pytest.mark.parametrize("counted", ["qwen2_moe"], indirect=True)
def test_a_damaged_expert_fails_only_the_requests_that_need_it(counted: tuple[Twin, Counted, JoinedModel]) -> None:
    twin, provider, model = counted
    used = []
    for name in ("a", "b", "z"):
        sequence = Sequence(twin.built)
        sequence.prefill(PROMPTS[name])
        twin.provider.requests.clear()
        sequence.step(5)
        used.append({(layer, expert) for layer, ids in twin.provider.requests for expert in ids})
    requests = prefilled(model, "a", "b", "z")
    provider.broken = {next(iter(used[1] - used[0] - used[2]))}
    with pytest.raises(CorruptData):
        model.step(requests, [5, 5, 5])
    with pytest.raises(CorruptData):
        model.step([requests[1]], [5])
    requests[1].close()
    got = model.step([requests[0], requests[2]], [5, 5])
    provider.broken.clear()
    assert equal(got, [alone(twin, name, [5])[1] for name in ("a", "z")])


@pytest.mark.parametrize("counted", ["mixtral"], indirect=True)
def test_a_request_that_cannot_go_on_does_not_hold_up_the_others(counted: tuple[Twin, Counted, JoinedModel]) -> None:
    twin, _, model = counted
    full, other = model.begin(prompt(128)), model.begin(PROMPTS["a"])
    model.advance([full, other], model.layer_count)
    for members in ([full, other], [full]):
        with pytest.raises(InvalidRequest, match="context of 128 tokens is full"):
            model.step(members, [5] * len(members))
    full.close()
    assert equal(model.step([other], [5]), alone(twin, "a", [5])[1:])
    bad = model.begin([VOCABULARY])
    with pytest.raises(InvalidRequest, match="not in the vocabulary"):
        model.advance([bad], 1)
    bad.close()


@pytest.mark.parametrize("counted", ["olmoe"], indirect=True)
def test_a_request_that_is_closed_within_a_pass_leaves_torch_and_the_model_as_they_were(
    counted: tuple[Twin, Counted, JoinedModel],
) -> None:
    twin, _, model = counted
    request = model.begin(PROMPTS["a"], scored=0)
    model.advance([request], 1)
    body = twin.built.model.base_model
    assert body._forward_hooks
    request.close()
    assert not body._forward_hooks
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert equal([logits_of(prefilled(model, "a")[0])], alone(twin, "a", []))
