"""Generates synthetic routing traces of known statistics, to compare policies.

    uniform        every expert is as likely as any other
    zipf           Zipf with exponent 1.1, ranks shuffled for every layer
    prompt-local   every 120 decode steps a random quarter of the experts of each layer becomes 6 times as likely, over
                   a lasting Zipf 0.15
    shifting       Zipf 0.15, reshuffled for every layer every 500 decode steps

Tokens select experts without replacement, independently of each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zipmoe.errors import InvalidRequest
from zipmoe.residency.pools import Grid, Phase
from zipmoe.simulation.trace import RoutedPass

WORKLOADS = ("uniform", "zipf", "prompt-local", "shifting")

ZIPF_EXPONENT, LASTING_EXPONENT = 1.1, 0.15
PROMPT_STEPS, PROMPT_GAIN, PROMPT_RATIO = 120, 6.0, 0.25
SHIFT_STEPS = 500

DEFAULT_STEPS = 5000
"""Enough steps for policies to learn: ten stretches of `shifting`, 41 whole stretches of `prompt-local`."""
DEFAULT_GRID = Grid(layer_count=8, expert_count=60)

_Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Workload:
    """Parameters of a synthetic trace.

    Attributes:
        name: one of `WORKLOADS`.
        steps: number of decode steps.
        seed: seed of all random draws. The decode steps of a seed are the same with and without prefills.
        grid: the experts of the model.
        selections: experts that a token uses in a layer.
        prefill_every: number of decode steps after each prefill; 0 for no prefills.
        prefill_tokens: tokens of a prefill.
    """

    name: str
    steps: int = DEFAULT_STEPS
    seed: int = 0
    grid: Grid = DEFAULT_GRID
    selections: int = 4
    prefill_every: int = 0
    prefill_tokens: int = 512


def generate(workload: Workload) -> Iterator[RoutedPass]:
    """Generates a trace.

    Raises:
        InvalidRequest: there is no workload of that name, or a number is out of range.
    """
    _check(workload)
    stretches = selection_weights(workload)
    decode, prefill = (np.random.default_rng([workload.seed, stream]) for stream in (1, 2))
    step, weights, lasts = 0, np.empty(0), 0
    for number in range(workload.steps):
        if not lasts:
            lasts, weights = next(stretches)
        lasts -= 1
        if workload.prefill_every and number % workload.prefill_every == 0:
            yield from _passes(workload, step, Phase.PREFILL, workload.prefill_tokens, weights, prefill)
            step += 1
        yield from _passes(workload, step, Phase.DECODE, 1, weights, decode)
        step += 1


def _check(workload: Workload) -> None:
    if workload.name not in WORKLOADS:
        raise InvalidRequest(f"there is no workload {workload.name!r}, only {', '.join(WORKLOADS)}")
    if workload.steps < 1 or workload.prefill_every < 0 or workload.prefill_tokens < 1 or workload.seed < 0:
        raise InvalidRequest("a workload has at least 1 step and 1 token a prefill, and a seed of at least 0")
    if not 1 <= workload.selections <= workload.grid.expert_count or workload.grid.layer_count < 1:
        raise InvalidRequest(f"a token cannot use {workload.selections} of {workload.grid.expert_count} experts")


def _passes(
    workload: Workload, step: int, phase: Phase, tokens: int, weights: _Weights, random: np.random.Generator
) -> Iterator[RoutedPass]:
    # The experts with the largest log weight + Gumbel noise are a weighted sample without replacement.
    noisy = np.log(weights) + random.gumbel(size=(tokens, *weights.shape))
    chosen = np.argpartition(-noisy, workload.selections - 1, axis=-1)[..., : workload.selections]
    for layer in range(workload.grid.layer_count):
        experts = tuple(np.unique(chosen[:, layer]).tolist())
        yield RoutedPass(step, layer, phase, experts, tokens)


def selection_weights(workload: Workload) -> Iterator[tuple[int, _Weights]]:
    """Draws the weights by which a workload's tokens select experts, one stretch of decode steps at a time.

    Where the weights never change, there is one stretch of all steps. Otherwise the iterator has no end.

    Yields:
        Decode steps of the stretch, and the weights: float64, shape (layers, experts).
    """
    grid, random = workload.grid, np.random.default_rng([workload.seed, 0])
    if workload.name == "uniform":
        yield workload.steps, np.ones(grid)
        return
    if workload.name == "zipf":
        yield workload.steps, _shuffled_zipf(grid, ZIPF_EXPONENT, random)
        return
    if workload.name == "shifting":
        while True:
            yield SHIFT_STEPS, _shuffled_zipf(grid, LASTING_EXPONENT, random)
    lasting = _shuffled_zipf(grid, LASTING_EXPONENT, random)
    hot = round(PROMPT_RATIO * grid.expert_count)
    while True:
        gains = np.ones(grid)
        for layer in gains:
            layer[random.choice(grid.expert_count, hot, replace=False)] = PROMPT_GAIN
        yield PROMPT_STEPS, lasting * gains


def _shuffled_zipf(grid: Grid, exponent: float, random: np.random.Generator) -> _Weights:
    weights = np.arange(1, grid.expert_count + 1) ** -exponent
    return np.stack([random.permutation(weights) for _ in range(grid.layer_count)])
