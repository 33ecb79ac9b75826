"""Chooses an option for each layer so that the options fit into a byte budget at the least total cost.

The `values` of options are costs, such as seconds: less is better.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zipmoe.planning.conditional_poisson import Floats

Integers = NDArray[np.int64]

QUANTA = 8192
"""Number of units into which the budget is divided. More units give a better choice and take longer."""


def pareto_front(nbytes: Integers, values: Floats) -> Integers:
    """Finds the Pareto-optimal options of a layer: no other option takes at most as many bytes at a lower cost.

    Returns:
        The indices of these options, by ascending bytes and therefore by descending cost.
    """
    order = np.lexsort((values, nbytes))
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], values[order][:-1]]))
    return order[values[order] < best_before]


def choose_options(
    nbytes: Sequence[Integers], values: Sequence[Floats], budget_bytes: int, quanta: int = QUANTA
) -> list[int]:
    """Chooses an option for each layer: a multiple-choice knapsack, solved by dynamic programming over bytes.

    Args:
        nbytes: for each layer, the bytes of its options, int64, at least 0. One option of each layer has 0 bytes.
        values: for each layer, the costs of its options, float64. The sum of the chosen costs is minimised.
        budget_bytes: bytes for all chosen options together, at least 0.
        quanta: number of units of the budget. Bytes of an option are rounded up to whole units. The result is exact
            where the budget is at most `quanta` bytes.

    Returns:
        The index of each layer's option. The chosen options together take at most `budget_bytes`. Bytes that rounding
        leaves over are spent on the best exchanges of single options.

    Cost: O(quanta * options on the fronts of all layers).
    """
    quantum = max(1, -(-budget_bytes // quanta))
    size = budget_bytes // quantum + 1
    fronts = [pareto_front(*layer) for layer in zip(nbytes, values, strict=True)]
    least = np.zeros(size)  # least cost of the layers so far, by available quanta
    taken: list[NDArray[np.int32]] = []
    for layer, front in enumerate(fronts):
        best, choice = np.full(size, np.inf), np.zeros(size, dtype=np.int32)
        for position, option in enumerate(front):
            units = -(-int(nbytes[layer][option]) // quantum)
            if units >= size:
                break
            candidate = least[: size - units] + values[layer][option]
            better = candidate < best[units:]
            np.copyto(best[units:], candidate, where=better)
            np.copyto(choice[units:], position, where=better)
        least = best
        taken.append(choice)
    chosen = [0] * len(fronts)
    left = size - 1
    for layer in reversed(range(len(fronts))):
        chosen[layer] = int(fronts[layer][taken[layer][left]])
        left -= -(-int(nbytes[layer][chosen[layer]]) // quantum)
    _spend_rest(fronts, nbytes, values, budget_bytes, chosen)
    return chosen


def _spend_rest(
    fronts: Sequence[Integers],
    nbytes: Sequence[Integers],
    values: Sequence[Floats],
    budget_bytes: int,
    chosen: list[int],
) -> None:
    """Exchanges single options for cheaper options, largest saving first, as long as an exchange fits the budget."""
    left = budget_bytes - sum(int(nbytes[layer][option]) for layer, option in enumerate(chosen))
    while True:
        best_gain, best_layer, best_option = 0.0, -1, -1
        for layer, front in enumerate(fronts):
            room = int(nbytes[layer][chosen[layer]]) + left
            last = int(np.searchsorted(nbytes[layer][front], room, side="right")) - 1
            gain = float(values[layer][chosen[layer]] - values[layer][front[last]])
            if gain > best_gain:
                best_gain, best_layer, best_option = gain, layer, int(front[last])
        if best_layer < 0:
            return
        left -= int(nbytes[best_layer][best_option] - nbytes[best_layer][chosen[best_layer]])
        chosen[best_layer] = best_option
