"""Defines the protocol by which a model gets experts, and a readable provider inside the process.

The router's own provider, `ArenaExperts`, serves experts from the arenas. Benchmarks and tests read a checkpoint's
experts by `CheckpointProvider`, which needs no other process.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from zipmoe.errors import NotFound
from zipmoe.model.linear.matrices import AwaitRest, Matrix, Weights
from zipmoe.model.raw_tensor import empty_bytes
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import LayerSource
from zipmoe.types import ExpertKey


class Arrival(NamedTuple):
    """An expert of a layer pass whose computation can begin.

    Attributes:
        expert: the expert's id.
        matrices: the expert's bf16 matrices in the order of the manifest, in host memory and in any form, not
            to be written. They are valid until the next arrival is asked for or the arrivals are closed.
        await_rest: None if all matrices have arrived. Otherwise only the first has, and a call waits for the others.
            Any further call returns at once.
    """

    expert: int
    matrices: Weights
    await_rest: AwaitRest = None

    def one_by_one(self) -> Iterator[Matrix]:
        """Yields the matrices in order, and waits behind the first if the others have not arrived."""
        yield self.matrices[0]
        if self.await_rest is not None:
            self.await_rest()
        yield from self.matrices[1:]


class Arrivals(Protocol):
    """The experts of a layer pass, each exactly once, as soon as it is usable, in any order; a generator is one.

    Whoever has asked for them closes them. A provider then drops what has not been taken.
    """

    def __iter__(self) -> Iterator[Arrival]: ...

    def __next__(self) -> Arrival:
        """Waits for the next expert.

        Raises:
            ZipMoeError: an expert cannot be provided; the pass has failed, the provider stays usable.
        """
        ...

    def close(self) -> None:
        """Ends the pass through the layer. Idempotent."""
        ...


class ExpertProvider(Protocol):
    """Provides the experts that a layer needs.

    Calls of `prefetch` pass the experts that a later layer is predicted to need. The provider decides which of these
    experts are prefetched. Such a speculative prefetch is called a guess.
    """

    @property
    def guess_depth(self) -> int:
        """Number of layers ahead for which the provider wants predicted experts; 0 for none."""
        ...

    def experts(self, layer: int, rows: Mapping[int, int]) -> Arrivals:
        """Asks for the experts of a layer pass; the caller takes them as they arrive, and closes the arrivals.

        Missing experts are asked for before this method returns, so that the caller can use the time of the fetches.

        Args:
            layer: ordinal of the MoE layer in forward order, from 0.
            rows: number of rows routed to each expert, at least 1; by ascending expert id.

        Raises:
            ZipMoeError: experts cannot be asked for; the pass has failed, the provider stays usable.
        """
        ...

    def prefetch(self, layer: int, guesses: Sequence[int]) -> None:
        """Receives the predicted experts of a later layer, the likeliest first; called within `guess_depth` only."""

    @property
    def wants_announcements(self) -> bool:
        """Whether the provider wants calls of `announce` before a layer asks for experts."""
        ...

    def announce(self, layer: int, experts: Sequence[int]) -> None:
        """Receives the experts that the current layer is predicted to choose, the likeliest first."""


class InProcessProvider:
    """Base class of providers that fetch nothing ahead."""

    guess_depth = 0
    wants_announcements = False

    def prefetch(self, layer: int, guesses: Sequence[int]) -> None:
        """Does nothing; never called, since `guess_depth` is 0."""

    def announce(self, layer: int, experts: Sequence[int]) -> None:
        """Does nothing; never called, since `wants_announcements` is False."""


class CheckpointProvider(InProcessProvider):
    """Reads experts from the shards of a checkpoint, without a cache."""

    def __init__(self, layers: Sequence[LayerSource]) -> None:
        self._layers = layers
        self._reader = PieceReader()

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        """Yields the experts in the order of `rows`; raises CorruptData where a shard is truncated or unreadable."""
        experts = self._layers[layer].experts
        for expert in rows:
            if not 0 <= expert < len(experts):
                raise NotFound(f"{ExpertKey(layer, expert)} does not exist: the layer has {len(experts)} experts")
            matrices = []
            for tensor in experts[expert]:
                storage, view = empty_bytes(tensor.spec.nbytes)
                self._reader.read(tensor.pieces, view)
                matrices.append(storage.view(torch.bfloat16).view(tensor.spec.rows, tensor.spec.cols))
            yield Arrival(expert, tuple(matrices))

    def close(self) -> None:
        """Closes the checkpoint's shards."""
        self._reader.close()
