"""Dense weights: loaded once, verified by checksum, kept in memory that the kernel does not evict."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash

from zipmoe.arena.huge_pages import AddressRange, huge_page_bytes
from zipmoe.errors import CorruptData, NotFound, UnsupportedModel
from zipmoe.model.checkpoint.shard import read_shard_header
from zipmoe.model.linear.compressed import held_memory
from zipmoe.model.raw_tensor import as_tensor, lasting_bytes
from zipmoe.store.format.checksum import xxh3
from zipmoe.store.format.entries import ChecksummedFile
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import ByteRange, DenseTensor


class DenseWeights(Protocol):
    """Tensors by name in the model's state dict, each in its own anonymous memory; a dictionary is an example."""

    def __iter__(self) -> Iterator[str]:
        """Yields the names."""
        ...

    def items(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Yields names and tensors. The tensors are the caller's."""
        ...


class DenseFiles:
    """The dense weights of a store, read one after the other, each file once from front to back."""

    def __init__(self, store: Path, files: Iterable[ChecksummedFile]) -> None:
        """Takes the store's directory and the manifest's `dense` entries."""
        self._store = store
        self._files: Sequence[ChecksummedFile] = tuple(files)

    def __iter__(self) -> Iterator[str]:
        """Yields the names in the headers of the files; raises as `items` does, and verifies no checksum."""
        for entry in self._files:
            with _as_corrupt():
                yield from read_shard_header(self._store / entry.name)

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the tensors, which do not refer to the files, and keeps none of them.

        A wrong checksum is found at the end of a file: the caller uses no tensor before the iteration has ended.

        Raises:
            InvalidRequest: a file may not be read.
            CorruptData: a file does not exist, has a wrong header, size, dtype or checksum, or the disk reports an
                error.

        Cost: disk reads of the files' size.
        """
        with closing(PieceReader()) as reader:
            for entry in self._files:
                with _as_corrupt():
                    yield from _file_items(reader, self._store / entry.name, entry.xxh3)


@contextmanager
def _as_corrupt() -> Iterator[None]:
    """Raises errors about a file as CorruptData: their own next step is that of a checkpoint."""
    try:
        yield
    except (CorruptData, NotFound, UnsupportedModel) as error:
        raise CorruptData(error.message) from error


def dense_from_source(tensors: Iterable[DenseTensor]) -> dict[str, torch.Tensor]:
    """Reads the dense tensors of a checkpoint that has not been packed; raises as `DenseFiles.items` does."""
    weights: dict[str, torch.Tensor] = {}
    with closing(PieceReader()) as reader:
        for tensor in tensors:
            storage, view = lasting_bytes(tensor.nbytes)
            reader.read(tensor.pieces, view)
            weights[tensor.name] = as_tensor(storage, tensor.dtype, tensor.shape, tensor.name)
    return weights


def _file_items(reader: PieceReader, path: Path, wanted: int) -> Iterator[tuple[str, torch.Tensor]]:
    entries = read_shard_header(path)
    header = memoryview(bytearray(min((entry.offset for entry in entries.values()), default=path.stat().st_size)))
    reader.read([ByteRange(path, 0, len(header))], header)
    digest = xxhash.xxh3_64(header)
    for entry in entries.values():  # in file order and without gaps, so the digest covers the whole file
        storage, view = lasting_bytes(entry.nbytes)
        reader.read([ByteRange(path, entry.offset, entry.nbytes)], view)
        digest.update(view)
        tensor = as_tensor(storage, entry.dtype, entry.shape, entry.name)
        del storage, view
        yield entry.name, tensor
        del tensor
    if digest.intdigest() != wanted:
        found = f"{digest.intdigest():016x}"
        raise CorruptData(f"dense weights {path} have checksum {found}, the manifest says {wanted:016x}")


def checksum(tensor: torch.Tensor) -> int:
    """Computes the xxh3-64 of a tensor's bytes in memory, on any device."""
    raw: Any = held_memory(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
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
    held = [held_memory(tensor).untyped_storage() for tensor in tensors]
    storages = {storage.data_ptr(): storage for storage in held}
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
