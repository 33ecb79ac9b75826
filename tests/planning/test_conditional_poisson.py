"""The conditional Poisson design against enumeration of all sets."""

from __future__ import annotations

from itertools import combinations
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipmoe.errors import InvalidRequest
from zipmoe.planning.conditional_poisson import (
    Floats,
    centre,
    coins,
    fit_weights,
    heads,
    inclusion_probabilities,
)


def sets(weights: Floats, chosen: int) -> dict[tuple[int, ...], float]:
    """The probability of every set, by the definition."""
    products = {s: prod(float(weights[i]) for i in s) for s in combinations(range(len(weights)), chosen)}
    total = sum(products.values())
    return {s: product / total for s, product in products.items()}


def brute_inclusion(weights: Floats, chosen: int) -> Floats:
    result = np.zeros(len(weights))
    for chosen_set, probability in sets(weights, chosen).items():
        result[list(chosen_set)] += probability
    return result


logs = st.floats(-6, 6)


@st.composite
def designs(draw: st.DrawFn) -> tuple[Floats, int]:
    """Weights over e^12, and a k below n."""
    weights = np.exp(np.array(draw(st.lists(logs, min_size=2, max_size=8))))
    return weights, draw(st.integers(1, len(weights) - 1))


@given(designs())
def test_inclusion_probabilities_are_those_of_all_sets(design: tuple[Floats, int]) -> None:
    weights, chosen = design
    got = inclusion_probabilities(centre(weights, chosen), chosen)
    np.testing.assert_allclose(got, brute_inclusion(weights, chosen), rtol=1e-9)
    assert got.sum() == pytest.approx(chosen)


@given(designs())
def test_weights_that_were_fitted_have_the_inclusion_probabilities(design: tuple[Floats, int]) -> None:
    weights, chosen = design
    inclusion = brute_inclusion(weights, chosen)
    fitted = fit_weights(inclusion)
    np.testing.assert_allclose(brute_inclusion(fitted, chosen), inclusion, atol=2e-9)
    assert coins(fitted).sum() == pytest.approx(chosen, abs=1e-6)


def test_equal_probabilities_are_simple_random_sampling() -> None:
    weights = fit_weights(np.full(60, 4 / 60))
    np.testing.assert_allclose(weights / weights[0], 1.0)


def test_heads_are_counted_up_to_a_limit() -> None:
    np.testing.assert_allclose(heads(np.array([0.5, 0.5]), 1), [0.25, 0.5])
    np.testing.assert_allclose(heads(np.array([]), 2), [1, 0, 0])


@pytest.mark.parametrize(
    "inclusion",
    [
        [1.0, 1.0, 0.0, 0.0],
        [1.0, 0.5, 0.5, 0.0],
        [1.0, 1.0, 1.0],
        [1 - 1e-9, 0.5, 0.5, 1e-9],
        [0.999] * 100 + [0.5] * 2 + [0.1 / 98] * 98,
    ],
)
def test_certain_and_impossible_experts_are_fitted_too(inclusion: list[float]) -> None:
    weights = fit_weights(np.array(inclusion))
    assert np.isfinite(weights).all() and (weights > 0).all()
    np.testing.assert_allclose(inclusion_probabilities(weights, round(sum(inclusion))), inclusion, atol=2e-9)


@pytest.mark.parametrize(("n", "chosen"), [(512, 10), (128, 64), (300, 299)])
def test_many_experts_neither_overflow_nor_lose_digits(n: int, chosen: int) -> None:
    """Elementary symmetric functions of these weights would be near 1e600."""
    weights = np.exp(np.random.default_rng(5).normal(0, 6, size=n))
    inclusion = inclusion_probabilities(centre(weights, chosen), chosen)
    assert inclusion.sum() == pytest.approx(chosen, rel=1e-12)
    fitted = fit_weights(inclusion)
    np.testing.assert_allclose(inclusion_probabilities(fitted, chosen), inclusion, atol=2e-9)


def test_a_stack_of_designs_is_fitted_as_each_alone() -> None:
    rows = np.random.default_rng(1).dirichlet(np.full(12, 3.0), size=(2, 3)) * 2
    together = fit_weights(rows, tolerance=1e-12)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(together[index], fit_weights(rows[index], tolerance=1e-12), rtol=1e-9)


@pytest.mark.parametrize(
    "inclusion",
    [[], [0.5, 0.4], [1.2, 0.8], [-0.1, 1.1], [float("nan"), 1.0], [0.0, 0.0], [[0.5, 0.5], [1.0, 1.0]]],
)
def test_what_are_no_inclusion_probabilities_is_refused(inclusion: list[float]) -> None:
    with pytest.raises(InvalidRequest, match="inclusion probabilities"):
        fit_weights(np.array(inclusion))
