"""Computes the description of a store that `zipmoe inspect` prints: sizes, counts and ratios."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from zipmoe.store.format.manifest import Manifest, read_manifest
from zipmoe.types import ExpertKey


@dataclass
class _MatrixTotals:
    """Sizes of all matrices of the same name and shape, summed over all experts."""

    count: int = 0
    bf16_bytes: int = 0
    e_bytes: int = 0

    def to_json(self, name: str, rows: int, cols: int) -> dict[str, object]:
        weights = self.bf16_bytes // 2
        return {
            "name": name,
            "rows": rows,
            "cols": cols,
            "count": self.count,
            "bf16_bytes": self.bf16_bytes,
            "e_bytes": self.e_bytes,
            "exponent_ratio": self.e_bytes / weights,
            "ratio": (self.e_bytes + weights) / self.bf16_bytes,
        }


def describe_store(store: Path) -> dict[str, object]:
    """Describes a store from its manifest.

    Returns:
        A JSON-ready description: identity of the store, sizes in bytes, and ratios of stored to bf16 bytes.
        `exponent_ratio` is the ratio of E-chunks to exponent planes. `padding_bytes` are the padding of the records.

    Raises:
        NotFound, UnsupportedStore, CorruptData, InvalidRequest: as `read_manifest`.

    Cost: reads the manifest and no expert.
    """
    manifest = read_manifest(store)
    tensors: dict[tuple[str, int, int], _MatrixTotals] = defaultdict(_MatrixTotals)
    layers = []
    e_chunk_count = 0
    for index, layer in enumerate(manifest.layers):
        records = [manifest.record(ExpertKey(index, expert)) for expert in range(layer.expert_count)]
        for record in records:
            for tensor in record.tensors:
                sizes = tensors[(tensor.spec.name, tensor.spec.rows, tensor.spec.cols)]
                sizes.count += 1
                sizes.bf16_bytes += tensor.spec.nbytes
                sizes.e_bytes += sum(chunk.nbytes for chunk in tensor.e_chunks)
                e_chunk_count += len(tensor.e_chunks)
        stored_bytes = sum(record.nbytes for record in records)
        layers.append(
            {
                "module": layer.module,
                "experts": layer.expert_count,
                "expert_bf16_bytes": layer.spec.weight_bytes,
                "stored_bytes": stored_bytes,
                "ratio": stored_bytes / (layer.spec.weight_bytes * layer.expert_count),
            }
        )
    return {
        "path": str(store),
        "format_version": manifest.version,
        "created_by": manifest.created_by,
        "family": manifest.family,
        "digest": manifest.digest,
        "codec": {"name": manifest.codec_name, "parameters": dict(manifest.codec_parameters)},
        "e_chunks_per_tensor": manifest.e_chunks_per_tensor,
        "expert_count": manifest.expert_count,
        "e_chunk_count": e_chunk_count,
        "sm_chunk_count": sum(sizes.count for sizes in tensors.values()),
        "chunk_slot_bytes": manifest.max_record_bytes,
        "tensor_slot_bytes": manifest.max_tensor_bytes,
        "measured": manifest.measured.to_json() if manifest.measured is not None else None,
        "left_out": list(manifest.left_out),
        "mtp_layers": manifest.mtp_layers,
        **_sizes(manifest, list(tensors.values())),
        "tensors": [sizes.to_json(*kind) for kind, sizes in tensors.items()],
        "layers": layers,
        "files": len(manifest.all_files) + 1,
    }


def _sizes(manifest: Manifest, tensors: list[_MatrixTotals]) -> dict[str, object]:
    bf16_bytes = sum(sizes.bf16_bytes for sizes in tensors)
    e_bytes = sum(sizes.e_bytes for sizes in tensors)
    stored_bytes = sum(file.nbytes for file in manifest.files)
    return {
        "expert_bf16_bytes": bf16_bytes,
        "expert_stored_bytes": stored_bytes,
        "e_bytes": e_bytes,
        "sm_bytes": bf16_bytes // 2,
        "padding_bytes": stored_bytes - e_bytes - bf16_bytes // 2,
        "dense_bytes": manifest.dense_bytes,
        "model_file_bytes": sum(file.nbytes for file in manifest.copied_files),
        "total_bytes": sum(file.nbytes for file in manifest.all_files),
        "expert_ratio": stored_bytes / bf16_bytes,
        "exponent_ratio": e_bytes / (bf16_bytes // 2),
        "ratio": (stored_bytes + manifest.dense_bytes) / (bf16_bytes + manifest.dense_bytes),
    }
