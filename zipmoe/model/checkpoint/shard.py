"""Reads the header of a safetensors file: the place of each tensor's bytes, without the bytes.

Format: 8 bytes little-endian header length, a JSON header of that length, then the tensors' bytes without gaps. The
file comes from the network. No number of the header is used before it has been checked against the file's size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from zipmoe.errors import CorruptData, InvalidRequest, NotFound, UnsupportedModel
from zipmoe.regular_file import open_regular_file
from zipmoe.store.pack.source import ByteRange
from zipmoe.system_error import CHECK_ACCESS, reason_of

# The limit of the safetensors library. transformers cannot load a file with a larger header either.
MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 16
DOWNLOAD_AGAIN = "download the checkpoint again"
COMPARE_SHARDS = "compare config.json with the shards: they are of different models or versions"
UNQUANTISED = "use a checkpoint of the model in bfloat16, float16 or float32"
"""Next step after a tensor of a dtype that only quantised checkpoints have."""

_GIT_LFS_MAGIC = b"version https://git-lfs"

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a shard.

    Attributes:
        name: key in the checkpoint.
        dtype: safetensors name, for example "BF16".
        shape: sizes, outermost first.
        path: the shard.
        offset: first byte, counted from the start of the file.
        nbytes: bytes from the first number to the end of the last.
        steps: numbers from one index to the next, dimension by dimension. A safetensors file is row-major without gaps.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int
    steps: tuple[int, ...]

    @property
    def byte_range(self) -> ByteRange:
        """The place of the tensor's bytes."""
        return ByteRange(self.path, self.offset, self.nbytes)

    @property
    def is_row_major(self) -> bool:
        """Whether the bytes are the tensor, row-major without gaps."""
        return self.steps == row_major(self.shape)


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Computes the steps of a row-major tensor without gaps."""
    return tuple(prod(shape[dimension + 1 :]) for dimension in range(len(shape)))


def read_shard_header(path: Path) -> dict[str, TensorEntry]:
    """Reads the place of every tensor of a safetensors file.

    Args:
        path: the file. The content is not trusted.

    Returns:
        The tensors by name, in file order. The tensors' bytes lie inside the file and do not overlap.

    Raises:
        NotFound: the file does not exist.
        InvalidRequest: the file may not be read, or is not a regular file.
        CorruptData: truncated, or not a well-formed safetensors file.
        UnsupportedModel: a tensor has a dtype that this version does not know.

    Cost: reads the header only, at most `MAX_HEADER_BYTES`.
    """
    header, file_bytes = _read_header_bytes(path)
    try:
        entries = json.loads(header, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"its header is not valid JSON ({error})")
    if not isinstance(entries, dict):
        _refuse(path, f"its header is a JSON {type(entries).__name__}, not an object")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "its __metadata__ is not a table of strings")
    data_offset = 8 + len(header)
    tensors = [_entry(path, name, value, data_offset) for name, value in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_coverage(path, tensors, data_offset, file_bytes)
    return {tensor.name: tensor for tensor in tensors}


def refuse_pointer(path: Path, head: bytes, file_bytes: int) -> None:
    """Raises CorruptData if the first bytes of a file say that git-lfs would have to fetch its content."""
    if head.startswith(_GIT_LFS_MAGIC):
        raise CorruptData(
            f"shard {path} is a git-lfs pointer of {file_bytes} bytes, not the weights",
            next_step="run `git lfs pull` in the checkpoint, or download it again",
        )


def _read_header_bytes(path: Path) -> tuple[bytes, int]:
    try:
        with open(open_regular_file(path), "rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            head = file.read(max(8, len(_GIT_LFS_MAGIC)))
            refuse_pointer(path, head, file_bytes)
            header_bytes = int.from_bytes(head[:8], "little")
            if len(head) < 8 or header_bytes > file_bytes - 8:
                wanted = f"{8 + header_bytes} bytes of header" if len(head) >= 8 else "at least 8 bytes"
                _refuse(path, f"the file has {file_bytes} bytes, its format calls for {wanted}")
            if header_bytes > MAX_HEADER_BYTES:
                _refuse(path, f"its header would be {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}")
            file.seek(8)
            header = file.read(header_bytes)
    except FileNotFoundError:
        raise NotFound(f"shard {path} does not exist", next_step=DOWNLOAD_AGAIN) from None
    except OSError as error:
        raise InvalidRequest(f"cannot read shard {path}: {reason_of(error)}", next_step=CHECK_ACCESS) from None
    if len(header) != header_bytes:
        _refuse(path, f"only {len(header)} of {header_bytes} header bytes could be read")
    return header, file_bytes


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key occurs twice")
    return unique


def _entry(path: Path, name: str, value: Any, data_offset: int) -> TensorEntry:
    if not isinstance(value, dict):
        _refuse(path, f"the entry of tensor {name!r} is not an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not _is_size_list(shape) or len(shape) > MAX_RANK:
        _refuse(path, f"tensor {name!r} has no valid shape")
    if not _is_size_list(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(path, f"tensor {name!r} has no valid data_offsets")
    if not isinstance(dtype, str):
        _refuse(path, f"tensor {name!r} has no dtype")
    if dtype not in DTYPE_BITS:
        raise UnsupportedModel(
            f"tensor {name!r} in shard {path} has dtype {dtype[:32]!r}, which is not known", next_step=UNQUANTISED
        )
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
    begin, end = offsets
    if bits != 8 * (end - begin):
        _refuse(path, f"tensor {name!r} of dtype {dtype} and shape {shape} has {end - begin} bytes")
    return TensorEntry(name, dtype, tuple(shape), path, data_offset + begin, end - begin, row_major(shape))


def _is_size_list(value: Any) -> TypeGuard[list[int]]:
    # bool is an int in Python; no file has sizes beyond 63 bits, and multiplying them only costs time
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _check_coverage(path: Path, tensors: list[TensorEntry], data_offset: int, file_bytes: int) -> None:
    """Checks the format's rule that tensors cover the data area exactly: no hole, no overlap, no trailing bytes."""
    position = data_offset
    for tensor in tensors:
        if tensor.offset != position:
            fault = "overlaps the tensor before it" if tensor.offset < position else "leaves a hole before it"
            _refuse(path, f"tensor {tensor.name!r} {fault}: it begins at {tensor.offset}, not at {position}")
        position += tensor.nbytes
    if position > file_bytes:
        _refuse(path, f"it is truncated: its header describes {position} bytes, the file has {file_bytes}")
    if position < file_bytes:
        _refuse(path, f"its header describes {position} bytes, the file has {file_bytes}")


def _refuse(path: Path, fault: str) -> NoReturn:
    raise CorruptData(f"shard {path} cannot be used: {fault}", next_step=DOWNLOAD_AGAIN)
