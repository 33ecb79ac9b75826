"""Dense weights: loaded once, verified by checksum, kept in memory that the kernel does not evict."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from zipmoe.arena.huge_pages import AddressRange, huge_page_bytes
from zipmoe.errors import CorruptData, NotFound, UnsupportedModel
from zipmoe.model.checkpoint.shard import read_shard_header
from zipmoe.model.raw_tensor import as_tensor, lasting_bytes
from zipmoe.store.format.checksum import xxh3
from zipmoe.store.format.entries import ChecksummedFile
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import ByteRange, DenseTensor

DenseWeights = Mapping[str, torch.Tensor]
"""Tensors by name in the model's state dict, each in its own anonymous memory."""


def load_dense(store: Path, files: Iterable[ChecksummedFile]) -> dict[str, torch.Tensor]:
    """Reads the dense weights of a store, each file once from front to back.

    Args:
        store: the store's directory.
        files: the manifest's `dense` entries.

    Returns:
        The tensors by name. They do not refer to the files.

    Raises:
        InvalidRequest: a file may not be read.
        CorruptData: a file does not exist, has a wrong header, size, dtype or checksum, or the disk reports an error.

    Cost: memory and disk reads of the files' size.
    """
    weights: dict[str, torch.Tensor] = {}
    with closing(PieceReader()) as reader:
        for entry in files:
            try:
                weights.update(_load_file(reader, store / entry.name, entry.xxh3))
            except (CorruptData, NotFound, UnsupportedModel) as error:  # whose own next step is that of a checkpoint
                raise CorruptData(error.message) from error
    return weights


def dense_from_source(tensors: Iterable[DenseTensor]) -> dict[str, torch.Tensor]:
    """Reads the dense tensors of a checkpoint that has not been packed; raises as `load_dense` does."""
    weights: dict[str, torch.Tensor] = {}
    with closing(PieceReader()) as reader:
        for tensor in tensors:
            storage, view = lasting_bytes(tensor.nbytes)
            reader.read(tensor.pieces, view)
            weights[tensor.name] = as_tensor(storage, tensor.dtype, tensor.shape, tensor.name)
    return weights


def _load_file(reader: PieceReader, path: Path, wanted: int) -> dict[str, torch.Tensor]:
    entries = read_shard_header(path)
    header = memoryview(bytearray(min((entry.offset for entry in entries.values()), default=path.stat().st_size)))
    reader.read([ByteRange(path, 0, len(header))], header)
    digest = xxhash.xxh3_64(header)
    weights: dict[str, torch.Tensor] = {}
    for entry in entries.values():  # in file order and without gaps, so the digest covers the whole file
        storage, view = lasting_bytes(entry.nbytes)
        reader.read([ByteRange(path, entry.offset, entry.nbytes)], view)
        digest.update(view)
        weights[entry.name] = as_tensor(storage, entry.dtype, entry.shape, entry.name)
    if digest.intdigest() != wanted:
        found = f"{digest.intdigest():016x}"
        raise CorruptData(f"dense weights {path} have checksum {found}, the manifest says {wanted:016x}")
    return weights


def checksum(tensor: torch.Tensor) -> int:
    """Computes the xxh3-64 of a tensor's bytes, on any device."""
    raw: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return xxh3(raw)


@dataclass(frozen=True)
class DenseMemory:
    """Size of the dense weights, and whether their memory is locked with mlock."""

    nbytes: int
    locked: bool
    lock_error: str = ""
    """Reason of a refused lock; empty if the memory is locked or is not host memory."""

    huge_page_bytes: int = 0
    """Bytes of `nbytes` that are in huge pages."""


def lock_in_memory(tensors: Iterable[torch.Tensor]) -> DenseMemory:
    """Locks the memory of tensors with mlock; a refusal is reported, not raised.

    Args:
        tensors: tensors on one device; shared memory counts once. Only host memory is locked.
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    nbytes = sum(storage.nbytes() for storage in storages.values())
    huge = huge_page_bytes(
        AddressRange(address, storage.nbytes()) for address, storage in storages.items() if storage.device.type == "cpu"
    )
    libc = ctypes.CDLL(None, use_errno=True)
    for address, storage in storages.items():
        if storage.device.type != "cpu":
            return DenseMemory(nbytes, locked=False)
        if storage.nbytes() and libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(storage.nbytes())) != 0:
            return DenseMemory(
                nbytes, locked=False, lock_error=os.strerror(ctypes.get_errno()).lower(), huge_page_bytes=huge
            )
    return DenseMemory(nbytes, locked=True, huge_page_bytes=huge)
