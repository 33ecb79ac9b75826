"""Writes dense tensors as safetensors shards, and copies model files verbatim."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from zipmoe.errors import InvalidRequest, UnsupportedModel
from zipmoe.store.format.entries import ChecksummedFile
from zipmoe.store.format.fields import canonical_json
from zipmoe.store.pack.partial_file import PartialFile, make_folder
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import DenseTensor, Piece

DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
}
"""Bytes of an element, by safetensors dtype."""

_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor as in the header of its shard."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class DenseShard:
    """A planned safetensors file. The tensors are in file order, widest elements first, so that all are aligned."""

    name: str
    tensors: tuple[PlannedTensor, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def header(self) -> bytes:
        """Builds the safetensors header: its length, then JSON padded with spaces to a multiple of 8 bytes."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        begin = 0
        for tensor in self.tensors:
            end = begin + tensor.nbytes
            entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
            begin = end
        text = canonical_json(entries)
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def plan_dense_shards(tensors: Iterable[DenseTensor], shard_bytes: int) -> list[DenseShard]:
    """Distributes tensors over shards in the order of their names, so that the input order has no influence.

    Args:
        tensors: all dense tensors.
        shard_bytes: size limit of a shard, without the header. A larger tensor gets a shard of its own.

    Raises:
        InvalidRequest: two tensors have the same name.
        UnsupportedModel: safetensors does not have a tensor's dtype, or a tensor's bytes do not fit its shape.
    """
    planned: dict[str, PlannedTensor] = {}
    for tensor in tensors:
        if tensor.name in planned:
            raise InvalidRequest(f"two dense tensors have the name {tensor.name}")
        planned[tensor.name] = _plan_tensor(tensor)
    groups: list[list[PlannedTensor]] = []
    filled = 0
    for _, entry in sorted(planned.items()):
        if not groups or filled + entry.nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.nbytes
    return [
        DenseShard(
            f"dense-{number:05}.safetensors",
            tuple(sorted(group, key=lambda tensor: (-DTYPE_BYTES[tensor.dtype], tensor.name))),
        )
        for number, group in enumerate(groups, start=1)
    ]


def write_dense_shard(
    shard: DenseShard,
    directory: Path,
    pieces: PieceReader,
    advance: Callable[[int], None],
) -> ChecksummedFile:
    """Writes one shard.

    Args:
        shard: the planned shard.
        directory: directory of the store.
        pieces: reader of the checkpoint's shards.
        advance: called with the bytes of each written part; may raise to stop.

    Raises:
        NotFound, InvalidRequest, CorruptData: a source shard cannot be read.
        ResourceExhausted, InvalidRequest, CorruptData: the file cannot be written. The file stays partial.

    Cost: 8 MiB of memory, and that of derived pieces.
    """
    buffer = memoryview(bytearray(_COPY_BYTES))

    def parts() -> Iterator[bytes | memoryview]:
        yield shard.header()
        for tensor in shard.tensors:
            for part in _read_parts(tensor.pieces, pieces, buffer):
                yield part
                advance(len(part))

    return _write(directory, shard.name, parts())


def copy_model_file(name: str, source: Path, directory: Path, pieces: PieceReader) -> ChecksummedFile:
    """Copies a model file or a chat template under a name in the store; raises as `write_dense_shard` does."""
    folder = (directory / name).parent
    if folder != directory:
        make_folder(folder)
    buffer = memoryview(bytearray(_COPY_BYTES))
    return _write(directory, name, _read_parts((pieces.whole_file(source),), pieces, buffer))


def _plan_tensor(tensor: DenseTensor) -> PlannedTensor:
    if tensor.dtype not in DTYPE_BYTES:
        raise UnsupportedModel(f"tensor {tensor.name} has dtype {tensor.dtype}, which dense files cannot hold")
    nbytes = math.prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]
    if tensor.nbytes != nbytes:
        shape = "x".join(str(size) for size in tensor.shape) or "scalar"
        raise UnsupportedModel(
            f"tensor {tensor.name} has {tensor.nbytes} bytes, but {tensor.dtype} {shape} is {nbytes}"
        )
    return PlannedTensor(tensor.name, tensor.dtype, tensor.shape, nbytes, tensor.pieces)


def _read_parts(places: Iterable[Piece], pieces: PieceReader, buffer: memoryview) -> Iterator[memoryview]:
    for place in places:
        for begin in range(0, place.nbytes, len(buffer)):
            part = buffer[: min(len(buffer), place.nbytes - begin)]
            pieces.read((place,), part, skip=begin)
            yield part


def _write(directory: Path, name: str, parts: Iterator[bytes | memoryview]) -> ChecksummedFile:
    digest = xxhash.xxh3_64()
    file = PartialFile(directory / name)
    try:
        for part in parts:
            digest.update(part)
            file.append([part])
        file.finish()
    finally:
        file.close()
    return ChecksummedFile(name, file.nbytes, digest.intdigest())
