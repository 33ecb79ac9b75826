"""Defines the contract between brain and policy: the brain offers candidates, and the policy ranks them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from zipmoe.residency.pools import Grid, Phase, Pool

#: Number of victims above which a partition is faster than a search for each victim.
_MANY = 8

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Policy(ABC):
    """Ranks experts for eviction. Experts are identified by their index in arrays of `grid.size` entries.

    Thread: not thread safe; the brain's thread owns the policy.

    Attributes:
        name: name of the policy on the command line.
        selective: whether `admits` may refuse in the phase of the latest `used`.
        ranks_chunks_alike: whether `victims` ranks the same candidates alike for the E pool and for the SM pool.
    """

    name: ClassVar[str]
    selective: bool = False
    ranks_chunks_alike: bool = True

    def __init__(self, grid: Grid, *, seed: int = 0) -> None:
        """Starts without any history.

        Args:
            grid: the experts of the model.
            seed: seed of random choices, for policies that draw at random.
        """
        self.grid = grid

    @abstractmethod
    def used(self, layer: int, rows: Mapping[int, int], phase: Phase) -> None:
        """Notes the experts that a pass through a layer needs, before any of these is placed.

        Args:
            layer: the layer.
            rows: tokens that are routed to each needed expert.
            phase: phase of the step.
        """

    def placed(self, pool: Pool, index: int) -> None:  # noqa: B027 - most policies do not ask
        """Notes that an expert was assigned a slot."""

    @abstractmethod
    def victims(self, pool: Pool, candidates: Bools, count: int) -> list[int]:
        """Returns up to `count` candidates, best victim first.

        Args:
            pool: pool in which a slot is wanted.
            candidates: bool, shape (experts,): true for evictable experts.
            count: victims wanted; fewer are returned only if there are fewer candidates.
        """

    def admits(self, pool: Pool, index: int, victim: int) -> bool:
        """Tells whether a needed expert may take the victim's slot for good, else it becomes transient."""
        return True

    @abstractmethod
    def promotes(self, index: int, victim: int) -> bool:
        """Tells whether a PACKED expert is worth a recovery into the victim's tensor slot."""


class ScoredPolicy(Policy):
    """A policy that keeps a score for every expert and evicts the lowest score first."""

    def __init__(self, grid: Grid, *, seed: int = 0) -> None:
        super().__init__(grid, seed=seed)
        self.scores: Floats = np.zeros(grid.size)

    @override
    def victims(self, pool: Pool, candidates: Bools, count: int) -> list[int]:
        return lowest(self.scores, candidates, count)

    @override
    def promotes(self, index: int, victim: int) -> bool:
        return bool(self.scores[index] > self.scores[victim])


def lowest(values: Floats, candidates: Bools, count: int) -> list[int]:
    """Returns the indices of the `count` lowest values among the candidates, lowest first."""
    masked = np.where(candidates, values, np.inf)
    if count > _MANY:
        count = min(count, len(masked))
        chosen = np.argpartition(masked, count - 1)[:count]
        ordered: list[int] = chosen[masked[chosen].argsort()].tolist()
        return [index for index in ordered if candidates[index]]
    found: list[int] = []
    for _ in range(count):
        best = int(masked.argmin())
        if not candidates[best] or masked[best] == np.inf:
            break
        found.append(best)
        masked[best] = np.inf
    return found
