"""Raw bytes as torch tensors in anonymous memory. Without swap, memory pressure cannot evict anonymous memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

import numpy as np
import torch

from zipmoe.arena.huge_pages import AddressRange, huge_page_size, prefer_huge_pages
from zipmoe.arena.mapping import AlignedMapping
from zipmoe.arena.memory_pages import advise
from zipmoe.errors import CorruptData, UnsupportedModel
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import Piece

DTYPES: Mapping[str, torch.dtype] = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "BOOL": torch.bool,
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip


def empty_bytes(nbytes: int) -> tuple[torch.Tensor, memoryview]:
    """Allocates memory that files are read into and that torch computes with.

    Returns:
        The same memory twice: a uint8 tensor, shape (nbytes,), 64-byte aligned; and a writable view of the memory.
    """
    array = torch.empty(nbytes, dtype=torch.uint8).numpy()
    return torch.from_numpy(array), array.data


def lasting_bytes(nbytes: int) -> tuple[torch.Tensor, memoryview]:
    """Allocates as `empty_bytes` does, in huge pages where the kernel has some, for memory that every token reads."""
    if nbytes < huge_page_size():
        return empty_bytes(nbytes)
    mapping = AlignedMapping(nbytes)
    prefer_huge_pages(mapping.place)
    view = mapping.view()
    return torch.from_numpy(np.frombuffer(view, np.uint8)), view


def written_bytes(most_bytes: int, write: Callable[[memoryview], int]) -> torch.Tensor:
    """Allocates as `lasting_bytes` does, for content whose size is known only when the content is written.

    Args:
        most_bytes: the largest possible size, at least 1.
        write: writes the content to the beginning of a view of `most_bytes` bytes, and returns its size. It touches
            nothing behind the content.

    Returns:
        The content, uint8, shape (size,), 64-byte aligned. Memory behind the content goes back to the kernel.
    """
    if most_bytes < huge_page_size():
        room, view = empty_bytes(most_bytes)
        return room[: write(view)].clone()
    mapping = AlignedMapping(most_bytes)
    nbytes = write(mapping.view())
    kept = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    if kept < most_bytes:
        advise(mapping.address + kept, most_bytes - kept, mmap.MADV_DONTNEED)
    prefer_huge_pages(AddressRange(mapping.address, nbytes))
    return torch.from_numpy(np.frombuffer(mapping.view(0, nbytes), np.uint8))


def as_tensor(
    storage: torch.Tensor, dtype_name: str, shape: Sequence[int], name: str, steps: Sequence[int] | None = None
) -> torch.Tensor:
    """Views uint8 bytes as a tensor of a dtype that safetensors names.

    Args:
        storage: uint8, shape (n,): from the first number of the tensor to the end of the last.
        dtype_name: the dtype.
        shape: the shape.
        name: the tensor, for errors.
        steps: numbers from one index to the next, dimension by dimension; None for row-major without gaps.

    Raises:
        UnsupportedModel: a model cannot hold this dtype; the message contains `name`.
    """
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        raise UnsupportedModel(f"dense tensor {name!r} has dtype {dtype_name}, not one of {', '.join(DTYPES)}")
    if not storage.numel():  # from empty memory, numpy makes a tensor without strides
        return torch.empty(tuple(shape), dtype=dtype)
    numbers = storage.view(dtype)
    return numbers.view(tuple(shape)) if steps is None else numbers.as_strided(tuple(shape), tuple(steps))


def read_pieces(pieces: Sequence[Piece], out: memoryview, subject: str) -> None:
    """Reads pieces of checkpoint shards into `out`, one after the other.

    Raises:
        NotFound, InvalidRequest: a shard cannot be opened.
        CorruptData: a shard is shorter than the piece, the disk reports an error, or the sizes of the pieces do not
            add up to the size of `out`. The message starts with `subject`.
    """
    if (nbytes := sum(piece.nbytes for piece in pieces)) != len(out):
        raise CorruptData(f"{subject} has {nbytes} bytes in its checkpoint, not {len(out)}")
    with closing(PieceReader()) as reader:
        try:
            reader.read(pieces, out)
        except CorruptData as error:
            raise CorruptData(f"{subject}: {error.message}", next_step=error.next_step) from error
