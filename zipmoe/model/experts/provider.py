"""Defines the protocol by which a model gets experts, and a readable provider inside the process.

The router's own provider, `ArenaExperts`, serves experts from the arenas. Benchmarks and tests read a checkpoint's
experts by `CheckpointProvider`, which needs no other process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch

from zipmoe.errors import NotFound
from zipmoe.model.linear.packed import Matrices, Weights
from zipmoe.model.raw_tensor import empty_bytes
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import LayerSource
from zipmoe.types import ExpertKey


class ExpertProvider(Protocol):
    """Provides the experts that a layer needs.

    Calls of `prefetch` pass the experts that a later layer is predicted to need. The provider decides which of these
    experts are prefetched. Such a speculative prefetch is called a guess.
    """

    @property
    def guess_depth(self) -> int:
        """Number of layers ahead for which the provider wants predicted experts; 0 for none."""
        ...

    def experts(self, layer: int, rows: Mapping[int, int]) -> Iterator[tuple[int, Weights]]:
        """Yields each expert of a layer pass exactly once, as soon as the expert is usable, in any order.

        Missing experts are asked for before this method returns, so that the caller can use the time of the fetches.

        Args:
            layer: ordinal of the MoE layer in forward order, from 0.
            rows: number of rows routed to each expert, at least 1; by ascending expert id.

        Yields:
            An expert's id and bf16 matrices in the order of the manifest, in host memory, contiguous or packed. The
            matrices are valid until the next item is asked for or the iterator is closed, and must not be written. The
            last matrices may still be under way; access to a matrix waits for its arrival.

        Raises:
            ZipMoeError: an expert cannot be provided; the pass has failed, the provider stays usable.
        """

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

    def experts(self, layer: int, rows: Mapping[int, int]) -> Iterator[tuple[int, Matrices]]:
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
            yield expert, tuple(matrices)

    def close(self) -> None:
        """Closes the checkpoint's shards."""
        self._reader.close()
