"""Raw bytes of files as torch tensors in anonymous memory, which no memory pressure evicts without swap."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

import torch

from zipmoe.errors import CorruptData, UnsupportedModel
from zipmoe.store.source import ByteRange

DTYPES: Mapping[str, torch.dtype] = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "BOOL": torch.bool,
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip


def empty_bytes(nbytes: int) -> tuple[torch.Tensor, memoryview]:
    """Allocates bytes that torch computes with and that files are read into.

    Returns:
        The same memory twice: uint8, shape (nbytes,), 64-byte aligned; and a writable view of it.
    """
    storage = torch.empty(nbytes, dtype=torch.uint8)
    return storage, memoryview(storage.numpy()).cast("B")


def as_tensor(storage: torch.Tensor, dtype_name: str, shape: Sequence[int], name: str) -> torch.Tensor:
    """Views uint8 bytes as a tensor of a dtype that safetensors names.

    Raises:
        UnsupportedModel: a model cannot hold this dtype; `name` tells whose it is.
    """
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        raise UnsupportedModel(f"tensor {name!r} has dtype {dtype_name}, which no model part that is kept dense may have")
    return storage.view(dtype).view(tuple(shape))


def read_exactly(file: BinaryIO, out: memoryview, what: str) -> None:
    """Fills `out` from an unbuffered file's current position.

    Raises:
        CorruptData: the file ends first, or the disk reports an error; `out` is then undefined.
    """
    done = 0
    while done < len(out):
        try:
            count = os.readv(file.fileno(), [out[done:]])
        except OSError as error:
            raise CorruptData(f"{what} cannot be read from {file.name}: {error.strerror}") from error
        if count == 0:
            raise CorruptData(f"{what} ends after {done} of {len(out)} bytes in {file.name}")
        done += count


def read_pieces(pieces: Iterable[ByteRange], out: memoryview, what: str) -> None:
    """Fills `out` with pieces of checkpoint shards, one after the other.

    Raises:
        CorruptData: a shard is missing or shorter than the piece, the disk reports an error, or the pieces do not add
            up to the bytes of `out`.
    """
    position = 0
    for piece in pieces:
        try:
            file = open(piece.path, "rb", buffering=0)
        except OSError as error:
            raise CorruptData(f"{what} cannot be read from {piece.path}: {error.strerror}") from error
        with file:
            file.seek(piece.offset)
            read_exactly(file, out[position : position + piece.nbytes], what)  # type: ignore[arg-type]
        position += piece.nbytes
    if position != len(out):
        raise CorruptData(f"{what} has {position} bytes in its checkpoint, not {len(out)}")
