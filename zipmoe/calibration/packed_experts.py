"""Reads packed experts of a store into memory, for measurements of the packed FFN."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from zipmoe.model.linear.packed import PackedMatrix, packed_matrices
from zipmoe.store.format.manifest import Manifest
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.reader import StoreReader
from zipmoe.types import ExpertKey, Part

WORKING_SET_BYTES = 96 << 20
"""Bytes of the experts that are computed in turn, FULL or PACKED: more than CPU caches hold, as while serving."""


def read_packed(store: Path, manifest: Manifest) -> list[tuple[PackedMatrix, ...]]:
    """Reads experts that have the shapes of the first MoE layer, spread over the store.

    Raises:
        CorruptData: an expert cannot be read.
    """
    spec = manifest.layers[0].spec
    keys = [key for key in manifest.expert_keys() if manifest.layers[key.layer].spec == spec]
    count = max(1, min(len(keys), WORKING_SET_BYTES // manifest.max_record_bytes))
    with closing(StoreReader(store, manifest)) as reader:
        return [_read(reader, manifest, keys[index * len(keys) // count]) for index in range(count)]


def _read(reader: StoreReader, manifest: Manifest, key: ExpertKey) -> tuple[PackedMatrix, ...]:
    slot = aligned_memory(manifest.max_record_bytes)
    reader.read(key, Part.ALL, slot)
    record = manifest.record(key)
    return packed_matrices(record, slot, slot[record.e_bytes :])
