from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipmoe.errors import InvalidRequest
from zipmoe.planning.popularity import Popularity, scale_to_sum


@dataclass(frozen=True)
class Entry:
    layer: int
    phase: str
    experts: tuple[int, ...]


def drawn(rng: np.random.Generator, rates: Any, chosen: int) -> list[int]:
    """A step's experts: the likelier the larger the rate (Gumbel's trick)."""
    keys = np.log(rates) + rng.gumbel(size=len(rates))
    return [int(expert) for expert in np.argsort(-keys)[:chosen]]


def zipf(rng: np.random.Generator, count: int, exponent: float = 1.1) -> Any:
    return rng.permutation(np.arange(1, count + 1) ** -exponent)


def test_before_the_first_step_all_experts_are_equally_popular() -> None:
    popularity = Popularity([60, 8])
    np.testing.assert_allclose(popularity.inclusion(0, 4), np.full(60, 4 / 60))
    np.testing.assert_allclose(popularity.inclusion(1, 8), np.ones(8))
    assert popularity.chosen(0, otherwise=4) == 4
    assert popularity.shifted_layers() == []


def test_probabilities_follow_what_is_used() -> None:
    popularity = Popularity([8])
    for _ in range(100):
        popularity.used(0, [1, 5])
    inclusion = popularity.inclusion(0, 2)
    assert inclusion.sum() == pytest.approx(2)
    assert sorted(np.argsort(-inclusion)[:2]) == [1, 5]
    assert inclusion[1] > 0.9 and inclusion[0] < 0.05
    assert popularity.chosen(0, otherwise=4) == 2


def test_later_uses_count_more() -> None:
    popularity = Popularity([4], half_life_steps=10, recent_half_life_steps=2, prior_steps=0.1)
    for expert in (0, 1):
        for _ in range(10):
            popularity.used(0, [expert])
    older, newer = popularity.inclusion(0, 1)[:2]
    assert newer / older == pytest.approx(2, rel=0.05)


def test_decay_neither_overflows_nor_loses_the_present() -> None:
    popularity = Popularity([3], half_life_steps=2, recent_half_life_steps=1)
    for step in range(5000):
        popularity.used(0, [step % 2])
    assert np.isfinite(popularity.inclusion(0, 1)).all()
    assert popularity.steps_seen(0) == pytest.approx(0.5**0.5 / (1 - 0.5**0.5))


def test_prefills_of_a_trace_are_left_out() -> None:
    popularity = Popularity([4, 4])
    popularity.seed([Entry(0, "prefill", (0, 1, 2, 3)), Entry(0, "decode", (3,)), Entry(1, "decode", (2,))])
    assert popularity.steps_seen(0) == popularity.steps_seen(1) == pytest.approx(0.5 ** (1 / 256))
    assert popularity.inclusion(0, 1).argmax() == 3


@pytest.mark.parametrize(("count", "chosen", "exponent"), [(60, 4, 1.1), (16, 4, 1.1), (128, 8, 2.5)])
def test_a_shift_is_seen_soon_and_steady_use_is_not_taken_for_one(count: int, chosen: int, exponent: float) -> None:
    rng = np.random.default_rng(3)
    popularity = Popularity([count])
    rates = zipf(rng, count, exponent)
    for _ in range(600):
        popularity.used(0, drawn(rng, rates, chosen))
        assert popularity.shifted_layers() == []
    rates = zipf(rng, count, exponent)
    steps = 0
    while not popularity.shifted_layers():
        popularity.used(0, drawn(rng, rates, chosen))
        steps += 1
        assert steps < 50
    for _ in range(50):
        popularity.used(0, drawn(rng, rates, chosen))
    popularity.adopt_recent([0])
    assert popularity.shifted_layers() == []
    best = set(np.argsort(-rates)[:chosen])
    assert len(best & set(np.argsort(-popularity.inclusion(0, chosen))[:chosen])) >= chosen - 2


def test_popularity_survives_json_and_goes_on() -> None:
    rng = np.random.default_rng(0)
    popularity = Popularity([6, 5], half_life_steps=40)
    for _ in range(50):
        popularity.used(0, drawn(rng, zipf(rng, 6), 2))
        popularity.used(1, [4])
    copy = Popularity.from_plain(json.loads(json.dumps(popularity.to_plain())))
    for one in (popularity, copy):
        one.used(0, [2, 3])
        one.used(1, [0])
    for layer in (0, 1):
        np.testing.assert_allclose(copy.inclusion(layer, 2), popularity.inclusion(layer, 2))
    assert copy.shifted_layers() == popularity.shifted_layers()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"half_life_steps": None},
        {"averages": []},
        {"averages": [[{"counts": [1.0], "steps": 1.0, "chosen": 1.0}]] * 3},
        {"averages": [[{"counts": [-1.0], "steps": 1.0, "chosen": 1.0}]] * 2},
        {"averages": [[{"counts": [1.0, 1.0], "steps": 1.0, "chosen": 1.0}], [{"counts": [1.0]}]]},
        {"averages": [[{"counts": ["x"], "steps": 1.0, "chosen": 1.0}]] * 2},
    ],
)
def test_what_is_no_popularity_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="popularity"):
        Popularity.from_plain({**Popularity([1]).to_plain(), **change})


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one layer"):
        Popularity([])
    with pytest.raises(InvalidRequest, match="half-lives"):
        Popularity([4], half_life_steps=10, recent_half_life_steps=20)
    popularity = Popularity([4])
    with pytest.raises(InvalidRequest, match="layer 1 is not"):
        popularity.used(1, [0])
    with pytest.raises(InvalidRequest, match="experts 0 to 3"):
        popularity.used(0, [4])
    with pytest.raises(InvalidRequest, match="uses 1 to 4"):
        popularity.inclusion(0, 5)


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=30), st.data())
def test_scaled_rates_sum_up_and_none_is_certain(rates: list[float], data: st.DataObject) -> None:
    total = data.draw(st.integers(1, len(rates) - 1))
    scaled = scale_to_sum(np.array(rates), total)
    assert scaled.sum() == pytest.approx(total)
    assert (scaled > 0).all() and (scaled < 1).all()
    assert (np.diff(scaled[np.argsort(rates)]) >= -1e-9).all()
