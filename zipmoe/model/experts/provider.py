"""Where the model gets its experts from: the protocol, and two readable providers inside the process.

The router's own provider reads from the tensor arena; these two need no other process and are its twins in tests,
`verify` and `--in-process`.
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
    """Gives the model the experts that a layer needs."""

    @property
    def guess_depth(self) -> int:
        """Of how many layers ahead it would like to be told what they will probably need; 0 for none."""
        ...

    def experts(self, layer: int, rows: Mapping[int, int]) -> Iterator[tuple[int, Weights]]:
        """Yields the experts of one layer pass, each exactly once, as soon as it is usable, in any order.

        Whatever has to be fetched is asked for before this returns, so that the caller can use the time.

        Args:
            layer: ordinal of the MoE layer in forward order, from 0.
            rows: how many rows are routed to each expert, at least 1; by ascending expert id.

        Yields:
            An expert's id and its bf16 matrices in the order of the manifest, in host memory, contiguous, or packed.
            They are valid until the next item is asked for or the iterator is closed, and are not to be written. The
            last ones may still be under way: whoever looks at them waits.

        Raises:
            ZipMoeError: an expert cannot be had; the pass has failed, the provider stays usable.
        """

    def expect(self, layer: int, guesses: Sequence[int]) -> None:
        """A layer will probably need these experts soon, the likeliest first. Called within `guess_depth` only."""

    @property
    def wants_announcements(self) -> bool:
        """Whether it would like to be told what a layer is about to need before it is asked for it."""
        ...

    def announce(self, layer: int, experts: Sequence[int]) -> None:
        """The layer that is computed now is about to need these experts, the likeliest first."""


class InProcessProvider:
    """What providers have in common that have nothing to fetch ahead."""

    guess_depth = 0
    wants_announcements = False

    def expect(self, layer: int, guesses: Sequence[int]) -> None:
        """Is never told of guesses."""

    def announce(self, layer: int, experts: Sequence[int]) -> None:
        """Is never told."""


class CheckpointProvider(InProcessProvider):
    """Reads experts from the shards of a checkpoint, every time anew."""

    def __init__(self, layers: Sequence[LayerSource]) -> None:
        self._layers = layers
        self._reader = PieceReader()

    def experts(self, layer: int, rows: Mapping[int, int]) -> Iterator[tuple[int, Matrices]]:
        """Yields the experts in the order of their ids; raises CorruptData where a shard is not what it was."""
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
    """Reads experts from a store, recovers them, and keeps the most recently used ones.

    Thread: one at a time.
    """

    def __init__(self, store: Path, manifest: Manifest, *, cache_bytes: int) -> None:
        """Opens the store's expert files.

        Args:
            store: the store's directory.
            manifest: its manifest.
            cache_bytes: the most bytes of recovered experts that are kept, at least one expert's.

        Raises:
            InvalidRequest: cache_bytes holds no expert.
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
        """Closes the store's files and frees what was kept."""
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
    """Views the bytes of a recovered expert as its matrices."""
    return tuple(
        storage[offset : offset + tensor.nbytes].view(torch.bfloat16).view(tensor.rows, tensor.cols)
        for tensor, offset in zip(spec.tensors, spec.tensor_offsets, strict=True)
    )
