"""Compares the layers of a store with a checkpoint, and the dense tensors byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zipmoe.errors import CorruptData, InvalidRequest, ZipMoeError
from zipmoe.regular_file import open_regular_file
from zipmoe.store.format.entries import MAX_BYTES
from zipmoe.store.format.fields import Fields, checked_integer, parse_json
from zipmoe.store.format.manifest import Manifest
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import ByteRange, DenseTensor, ExpertSource
from zipmoe.store.verify.compare import first_difference
from zipmoe.system_error import reason_of

_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a dense shard of the store."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    place: ByteRange


def compare_layers(manifest: Manifest, source: ExpertSource) -> Iterator[str]:
    """Yields every difference between the MoE layers of a store and of a checkpoint."""
    if manifest.family != source.family:
        yield f"the store is of family {manifest.family}, the checkpoint of {source.family}"
    if len(manifest.layers) != len(source.layers):
        yield f"the store has {len(manifest.layers)} MoE layers, the checkpoint {len(source.layers)}"
    for index, (stored, original) in enumerate(zip(manifest.layers, source.layers, strict=False)):
        if (stored.module, stored.expert_count) != (original.module, len(original.experts)):
            yield (
                f"MoE layer {index} is {stored.module} with {stored.expert_count} experts, "
                f"in the checkpoint {original.module} with {len(original.experts)}"
            )
        elif stored.spec != original.spec:
            yield f"the matrices of MoE layer {index} differ in name or shape"


def read_dense_header(path: Path, nbytes: int) -> dict[str, StoredTensor]:
    """Reads dtype, shape and place of every tensor from the header of a safetensors file.

    Raises:
        CorruptData: the file is not a safetensors file of `nbytes` bytes.
    """
    try:
        with open(open_regular_file(path), "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > nbytes - 8:
                raise CorruptData(f"{path} has a header of {header_bytes} bytes, more than the file")
            text = file.read(header_bytes)
    except InvalidRequest as error:
        raise CorruptData(error.message) from error
    except OSError as error:
        raise CorruptData(f"cannot read {path}: {reason_of(error)}") from error
    value = parse_json(text, f"the header of {path}")
    if not isinstance(value, dict):
        raise CorruptData(f"the header of {path} is not an object")
    tensors: dict[str, StoredTensor] = {}
    for name, entry in value.items():
        if name == "__metadata__":
            continue
        fields = Fields(entry, f"{name} of {path}")
        shape = tuple(checked_integer(size, f"shape of {name}", 0, MAX_BYTES) for size in fields.items("shape", 0, 32))
        begin, end = (
            checked_integer(place, f"data_offsets of {name}", 0, nbytes - 8 - header_bytes)
            for place in fields.items("data_offsets", 2, 2)
        )
        if end < begin:
            raise CorruptData(f"data_offsets of {name} of {path} run backwards")
        place = ByteRange(path, 8 + header_bytes + begin, end - begin)
        tensors[name] = StoredTensor(path.name, fields.text("dtype"), shape, place)
    return tensors


def compare_dense(
    store: Path, manifest: Manifest, source: ExpertSource, pieces: PieceReader
) -> Iterator[tuple[str, str]]:
    """Compares every dense tensor of the checkpoint with the store, and yields (file, problem) for each difference.

    Raises:
        NotFound, CorruptData: the checkpoint cannot be read.
    """
    stored: dict[str, StoredTensor] = {}
    for file in manifest.dense:
        problem = _collect(store / file.name, file.nbytes, stored)
        if problem is not None:
            yield file.name, problem
    for original in source.dense_tensors:
        tensor = stored.pop(original.name, None)
        if tensor is None:
            yield "manifest.json", f"no dense file holds {original.name} of the checkpoint"
        elif (tensor.dtype, tensor.shape, tensor.place.nbytes) != (original.dtype, original.shape, original.nbytes):
            yield (
                tensor.file,
                (
                    f"{original.name} is {tensor.dtype} {list(tensor.shape)}, "
                    f"in the checkpoint {original.dtype} {list(original.shape)}"
                ),
            )
        else:
            problem = _difference(tensor, original, pieces)
            if problem is not None:
                yield tensor.file, f"{original.name} {problem}"
    for name, tensor in stored.items():
        yield tensor.file, f"{name} is not in the checkpoint"


def _collect(path: Path, nbytes: int, tensors: dict[str, StoredTensor]) -> str | None:
    try:
        tensors.update(read_dense_header(path, nbytes))
    except CorruptData as error:
        return error.message
    return None


def _difference(tensor: StoredTensor, original: DenseTensor, pieces: PieceReader) -> str | None:
    ours, theirs = (memoryview(bytearray(min(_PIECE_BYTES, original.nbytes))) for _ in range(2))
    for begin in range(0, original.nbytes, _PIECE_BYTES):
        end = min(begin + _PIECE_BYTES, original.nbytes)
        left, right = ours[: end - begin], theirs[: end - begin]
        try:
            pieces.read((tensor.place,), left, skip=begin)
        except ZipMoeError as error:
            return f"cannot be read: {error.message}"
        pieces.read(original.pieces, right, skip=begin)
        place = first_difference(left, right)
        if place is not None:
            return f"differs from the checkpoint, first at byte {begin + place}"
    return None
