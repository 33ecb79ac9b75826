from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zipmoe.planning.knapsack import choose_options, pareto_front

options = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 10)), max_size=5)


@given(st.lists(st.tuples(st.floats(0, 10), options), min_size=1, max_size=4), st.integers(0, 120))
def test_small_budgets_are_spent_as_well_as_they_can_be(
    layers: list[tuple[float, list[tuple[int, float]]]], budget: int
) -> None:
    nbytes = [np.array([0, *(size for size, _ in more)]) for _, more in layers]
    values = [np.array([nothing, *(value for _, value in more)]) for nothing, more in layers]
    chosen = choose_options(nbytes, values, budget)
    best = min(
        sum(float(values[layer][option]) for layer, option in enumerate(choice))
        for choice in product(*(range(len(each)) for each in nbytes))
        if sum(int(nbytes[layer][option]) for layer, option in enumerate(choice)) <= budget
    )
    assert sum(int(nbytes[layer][option]) for layer, option in enumerate(chosen)) <= budget
    assert sum(float(values[layer][option]) for layer, option in enumerate(chosen)) <= best + 1e-12


@given(st.integers(0, 10**6), st.integers(0, 10**9))
def test_large_budgets_are_never_exceeded_and_nearly_spent(seed: int, budget: int) -> None:
    rng = np.random.default_rng(seed)
    nbytes = [np.concatenate([[0], rng.integers(1, 10**8, size=20)]) for _ in range(6)]
    values = [1e9 - each * rng.uniform(0.9, 1.1) for each in nbytes]
    chosen = choose_options(nbytes, values, budget, quanta=64)
    spent = sum(int(nbytes[layer][option]) for layer, option in enumerate(chosen))
    assert spent <= budget
    for layer, option in enumerate(chosen):
        better = values[layer] < values[layer][option]
        assert not (better & (nbytes[layer] - nbytes[layer][option] <= budget - spent)).any()


def test_the_front_holds_only_what_nothing_smaller_beats() -> None:
    nbytes = np.array([5, 0, 3, 3, 9])
    values = np.array([1.0, 4.0, 2.0, 3.0, 1.0])
    assert pareto_front(nbytes, values).tolist() == [1, 2, 0]
