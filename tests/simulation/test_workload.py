from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from zipmoe.errors import InvalidRequest
from zipmoe.residency.pools import Grid, Phase
from zipmoe.simulation.trace import RoutedPass
from zipmoe.simulation.workload import WORKLOADS, Workload, generate


def passes(name: str, **settings: object) -> list[RoutedPass]:
    return list(generate(Workload(name, **{"steps": 240, "grid": Grid(2, 60), **settings})))  # type: ignore[arg-type]


def shares(trace: list[RoutedPass], layer: int) -> np.ndarray:
    counts = Counter(expert for routed in trace if routed.layer == layer for expert in routed.experts)
    return np.array([counts[expert] for expert in range(60)]) / sum(counts.values())


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_step_passes_every_layer_with_four_distinct_experts(name: str) -> None:
    trace = passes(name, steps=30)
    assert [(routed.step, routed.layer) for routed in trace] == [
        (step, layer) for step in range(30) for layer in (0, 1)
    ]
    assert all(len(set(routed.experts)) == 4 and list(routed.experts) == sorted(routed.experts) for routed in trace)
    assert all(routed.phase is Phase.DECODE and routed.tokens == 1 for routed in trace)


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_seed_gives_the_same_trace_and_another_seed_another(name: str) -> None:
    assert passes(name, steps=20, seed=1) == passes(name, steps=20, seed=1) != passes(name, steps=20, seed=2)


@pytest.mark.parametrize("name", WORKLOADS)
def test_prefills_come_between_the_same_decode_steps(name: str) -> None:
    plain, between = passes(name, steps=120), passes(name, steps=120, prefill_every=50)
    decode = [routed for routed in between if routed.phase is Phase.DECODE]
    assert [routed.experts for routed in decode] == [routed.experts for routed in plain]
    prefills = [routed for routed in between if routed.phase is Phase.PREFILL]
    assert [routed.step for routed in prefills] == [0, 0, 51, 51, 102, 102]
    assert all(routed.tokens == 512 and len(routed.experts) > 50 for routed in prefills)


def test_zipf_is_steep_and_differs_from_layer_to_layer() -> None:
    trace = passes("zipf", steps=2000)
    first, second = shares(trace, 0), shares(trace, 1)
    assert first.max() > 5 / 60 and first.argmax() != second.argmax()
    assert shares(passes("uniform", steps=2000), 0).max() < 1.5 / 60


def test_a_quarter_of_the_experts_is_hot_for_120_steps() -> None:
    trace = passes("prompt-local")
    first, second = (shares([r for r in trace if r.step // 120 == prompt], 0) for prompt in (0, 1))
    hot = [set(np.argsort(-each)[:15].tolist()) for each in (first, second)]
    assert first[list(hot[0])].sum() > 0.55
    assert len(hot[0] & hot[1]) < 12


def test_a_shift_comes_after_500_steps() -> None:
    trace = passes("shifting", steps=1000, grid=Grid(1, 60))
    before, after = (shares([r for r in trace if r.step // 500 == half], 0) for half in (0, 1))
    assert np.corrcoef(before, after)[0, 1] < 0.5


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"selections": 61}, {"selections": 0}, {"prefill_every": -1}, {"seed": -1}]
)
def test_impossible_workloads_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest):
        passes("uniform", **settings)
    with pytest.raises(InvalidRequest, match="no workload 'nonsense', only uniform, zipf, prompt-local, shifting"):
        passes("nonsense")
