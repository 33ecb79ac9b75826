"""Defines the protocol by which a model gets experts, and two readable providers inside the process.

The router's own provider, `ArenaExperts`, serves experts from the arenas. The two providers of this file are its twins:
they need no other process and are used by tests and benchmarks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from zipmoe.codec.registry import create_codec
from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.model.linear.packed import Weights
from zipmoe.model.raw_tensor import empty_bytes
from zipmoe.store.format.layout import ExpertSpec
from zipmoe.store.format.manifest import Manifest
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import LayerSource
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.reader import StoreReader
from zipmoe.store.read.recovery import recover_tensor
from zipmoe.types import ExpertKey, Part

Matrices = tuple[torch.Tensor, ...]


class ExpertProvider(Protocol):
    """Provides the experts that a layer needs.

    A guess is a predicted need of a later layer, which the provider may prefetch.
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
        """Receives the experts that the current layer is about to need, the likeliest first."""


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


class StoreProvider(InProcessProvider):
    """Reads and recovers the experts of a store; keeps the most recently used experts.

    Thread: one at a time.
    """

    def __init__(self, store: Path, manifest: Manifest, *, cache_bytes: int) -> None:
        """Opens the store's expert files.

        Args:
            store: directory of the store.
            manifest: manifest of the store.
            cache_bytes: most bytes of recovered experts that are kept, at least the bytes of one expert.

        Raises:
            InvalidRequest: `cache_bytes` are too few for one expert.
            UnsupportedStore: the codec is not known.
        """
        if cache_bytes < manifest.max_tensor_bytes:
            raise InvalidRequest(f"a cache of {cache_bytes} bytes holds no expert of {manifest.max_tensor_bytes} bytes")
        self._manifest = manifest
        self._codec = create_codec(manifest.codec_name, manifest.codec_parameters)
        self._reader = StoreReader(store, manifest)
        self._slot = aligned_memory(manifest.max_record_bytes)
        self._cached: OrderedDict[ExpertKey, torch.Tensor] = OrderedDict()
        self._capacity = cache_bytes // manifest.max_tensor_bytes

    def experts(self, layer: int, rows: Mapping[int, int]) -> Iterator[tuple[int, Matrices]]:
        """Yields the cached experts first; raises as `StoreReader.read` and the codec do."""
        keys = [ExpertKey(layer, expert) for expert in rows]
        hits = [key for key in keys if key in self._cached]
        for key in hits + [key for key in keys if key not in self._cached]:
            yield key.expert, _matrices(self._manifest.layers[layer].spec, self._get(key))

    def close(self) -> None:
        """Closes the store's files and frees the kept experts."""
        self._reader.close()
        self._cached.clear()

    def _get(self, key: ExpertKey) -> torch.Tensor:
        expert = self._cached.pop(key, None)
        if expert is None:
            if len(self._cached) >= self._capacity:
                self._cached.popitem(last=False)
            expert = self._recover(key)
        self._cached[key] = expert
        return expert

    def _recover(self, key: ExpertKey) -> torch.Tensor:
        self._reader.read(key, Part.ALL, self._slot)
        record = self._manifest.record(key)
        spec = self._manifest.layers[key.layer].spec
        storage, out = empty_bytes(spec.tensor_bytes)
        for tensor, offset in zip(record.tensors, spec.tensor_offsets, strict=True):
            recover_tensor(self._codec, tensor, self._slot, out[offset : offset + tensor.spec.nbytes])
        return storage


def _matrices(spec: ExpertSpec, storage: torch.Tensor) -> Matrices:
    """Returns views of a recovered expert's bytes as matrices."""
    return tuple(
        storage[offset : offset + tensor.nbytes].view(torch.bfloat16).view(tensor.rows, tensor.cols)
        for tensor, offset in zip(spec.tensors, spec.tensor_offsets, strict=True)
    )
