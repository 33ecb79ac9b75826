"""Reads matrices of experts from a store or a checkpoint, spread over the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from zipmoe.bench.matrix import Matrix, MatrixSample, new_bytes
from zipmoe.codec.registry import create_codec
from zipmoe.errors import InvalidRequest
from zipmoe.store.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import ByteRange
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.reader import StoreReader
from zipmoe.store.read.recovery import recover_tensor
from zipmoe.types import ExpertKey, Part

if TYPE_CHECKING:
    from zipmoe.model.checkpoint.shard import TensorEntry

T = TypeVar("T")


def find_matrices(path: Path, matrix_count: int) -> MatrixSample:
    """Reads up to `matrix_count` matrices of experts.

    Args:
        path: directory of a store, or of a checkpoint in the hub's format.
        matrix_count: largest number of matrices.

    Raises:
        NotFound: `path` is neither a store nor a checkpoint.
        InvalidRequest: the checkpoint holds no bf16 matrix.
        CorruptData, UnsupportedStore, UnsupportedModel: as the readers of both do.
    """
    is_store = (path / MANIFEST_NAME).exists()
    matrices = tuple(_of_store(path, matrix_count) if is_store else _of_checkpoint(path, matrix_count))
    return MatrixSample(str(path), matrices)


def _spread(all_of_them: Sequence[T], count: int) -> list[T]:
    """Returns at most `count` elements at even distances."""
    wanted = min(count, len(all_of_them))
    return [all_of_them[index * len(all_of_them) // wanted] for index in range(wanted)]


def _of_store(path: Path, matrix_count: int) -> Iterator[Matrix]:
    manifest: Manifest = read_manifest(path)
    codec = create_codec(manifest.codec_name, manifest.codec_parameters)
    places = [
        (ExpertKey(layer, expert), tensor)
        for layer, entry in enumerate(manifest.layers)
        for expert in range(entry.expert_count)
        for tensor in range(len(entry.spec.tensors))
    ]
    slot = aligned_memory(manifest.max_record_bytes)
    with closing(StoreReader(path, manifest)) as reader:
        for key, index in _spread(places, matrix_count):
            reader.read(key, Part.ALL, slot)
            tensor = manifest.record(key).tensors[index]
            bf16 = new_bytes(tensor.spec.nbytes)
            recover_tensor(codec, tensor, slot, bf16)
            yield Matrix(tensor.spec.rows, tensor.spec.cols, bf16)


def _of_checkpoint(path: Path, matrix_count: int) -> Iterator[Matrix]:
    from zipmoe.model.checkpoint.checkpoint import open_checkpoint

    matrices = [
        entry
        for entry in open_checkpoint(path).tensors.values()
        if entry.dtype == "BF16" and len(entry.shape) in (2, 3) and entry.is_row_major
    ]
    # The checkpoint of a dense model has no experts; its other matrices serve as well.
    chosen = [entry for entry in matrices if "expert" in entry.name] or matrices
    places = [(entry, index) for entry in chosen for index in range(_matrix_count(entry))]
    if not places:
        raise InvalidRequest(f"checkpoint {path} holds no bf16 matrix to measure on")
    with closing(PieceReader()) as reader:
        for entry, index in _spread(places, matrix_count):
            rows, cols = entry.shape[-2:]
            bf16 = new_bytes(2 * rows * cols)
            piece = ByteRange(entry.path, entry.offset + index * bf16.nbytes, bf16.nbytes)
            reader.read([piece], bf16)
            yield Matrix(rows, cols, bf16)


def _matrix_count(entry: TensorEntry) -> int:
    """Counts the matrices of a tensor: 1, or the number of experts; 0 if an axis is empty."""
    if 0 in entry.shape:
        return 0
    return 1 if len(entry.shape) == 2 else entry.shape[0]
