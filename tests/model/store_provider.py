"""Experts of a packed store, read and recovered in the test's own process for every pass."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path

import torch

from zipmoe.codec.registry import create_codec
from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.linear.matrices import Matrices
from zipmoe.model.raw_tensor import empty_bytes
from zipmoe.store.format.manifest import Manifest
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.reader import StoreReader
from zipmoe.store.read.recovery import recover_tensor
from zipmoe.types import ExpertKey, Part


class StoreProvider(InProcessProvider):
    """Reads and recovers the experts of a store, without a cache. Thread: one at a time."""

    def __init__(self, store: Path, manifest: Manifest) -> None:
        """Opens the store's expert files."""
        self._manifest = manifest
        self._codec = create_codec(manifest.codec_name, manifest.codec_parameters)
        self._reader = StoreReader(store, manifest)
        self._slot = aligned_memory(manifest.max_record_bytes)

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        """Yields the experts in the order of `rows`."""
        for expert in rows:
            yield Arrival(expert, self._recover(ExpertKey(layer, expert)))

    def close(self) -> None:
        """Closes the store's files."""
        self._reader.close()

    def _recover(self, key: ExpertKey) -> Matrices:
        self._reader.read(key, Part.ALL, self._slot)
        matrices = []
        for tensor in self._manifest.record(key).tensors:
            storage, out = empty_bytes(tensor.spec.nbytes)
            recover_tensor(self._codec, tensor, self._slot, out)
            matrices.append(storage.view(torch.bfloat16).view(tensor.spec.rows, tensor.spec.cols))
        return tuple(matrices)
