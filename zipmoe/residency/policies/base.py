"""The contract between the brain, which knows what is possible, and a policy, which knows what is worth keeping."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from zipmoe.residency.pools import Grid, Phase, Pool

#: From how many victims on a selection is faster than as many searches.
_MANY = 8

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Policy(ABC):
    """Ranks experts. Experts are named by their index in arrays of `grid.size` entries.

    Thread: not thread safe; the brain's thread owns it.

    Attributes:
        selective: whether `admits` may refuse in the phase of the pass that `used` told last.
        ranks_chunks_alike: whether `victims` of the E pool and of the SM pool are the same for the same candidates.
    """

    name: ClassVar[str]
    selective: bool = False
    ranks_chunks_alike: bool = True

    def __init__(self, grid: Grid, *, seed: int = 0) -> None:
        """Starts knowing nothing.

        Args:
            grid: the experts there are.
            seed: of whatever the policy draws at random.
        """
        self.grid = grid
        self.seed = seed

    @abstractmethod
    def used(self, layer: int, rows: Mapping[int, int], phase: Phase) -> None:
        """A pass through a layer needs these experts, for so many tokens each; told before any is placed."""

    def placed(self, pool: Pool, index: int) -> None:  # noqa: B027 - most policies do not ask
        """A slot was assigned to an expert."""

    @abstractmethod
    def victims(self, pool: Pool, candidates: Bools, count: int) -> list[int]:
        """Names up to `count` of the candidates, the one that is best lost first; fewer only if there are fewer."""

    def admits(self, pool: Pool, index: int, victim: int) -> bool:
        """Whether a needed expert may take the victim's slot for good; if not, it is served from a transient slot."""
        return True

    @abstractmethod
    def promotes(self, index: int, victim: int) -> bool:
        """Whether it is worth a recovery that an expert, PACKED now, becomes FULL in the victim's place."""


class ScoredPolicy(Policy):
    """A policy that keeps a score of every expert up to date and loses the lowest first."""

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
    """Indices of the lowest values among the candidates, lowest first."""
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
