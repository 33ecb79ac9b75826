"""Finds the place of each tensor's bytes in a .bin shard, which `torch.save` wrote, without running its code.

A shard is a zip archive of a pickle and one uncompressed record for each storage. `torch.load` reads the pickle with
`weights_only`, which allows no code, and maps the file. The places of the tensors in the map are their places in the
file. Before torch 1.6 a shard was one stream of pickles and storages. Such a shard is read into memory.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import struct
import zipfile
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from zipmoe.arena.headroom import memory_headroom
from zipmoe.errors import CorruptData, InvalidRequest, NotFound, ResourceExhausted, UnsupportedModel
from zipmoe.model.checkpoint.memory_file import MemoryFile
from zipmoe.model.checkpoint.shard import DOWNLOAD_AGAIN, TensorEntry, refuse_pointer, row_major
from zipmoe.model.raw_tensor import DTYPES
from zipmoe.regular_file import open_regular_file
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import ByteRange
from zipmoe.system_error import CHECK_ACCESS, first_line, reason_of

UNMAPPED_BYTES = 8 << 30
"""Most bytes of a shard that is read into memory because it cannot be mapped."""

MAX_PICKLE_BYTES = 256 << 20
_ZIP_MAGIC = b"PK\x03\x04"
_SAMPLES = 64
_SAMPLE_BYTES = 4096
_DTYPE_NAMES = {
    **{dtype: name for name, dtype in DTYPES.items()},
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
}  # fmt: skip
_SAFETENSORS = "use the model's safetensors"
_SAVE_AGAIN = "load it with transformers where you trust it, and call save_pretrained, which writes safetensors"


class _Place(NamedTuple):
    path: Path
    offset: int


def read_bin_shard(path: Path) -> dict[str, TensorEntry]:
    """Reads the place of every tensor of a .bin shard.

    Args:
        path: the file. The content is not trusted, and no code of it runs.

    Returns:
        The tensors by name, in the order of the file. Tensors may share bytes. Of a shard that cannot be mapped, the
        bytes are in a `MemoryFile`.

    Raises:
        NotFound: the file does not exist.
        InvalidRequest: the file may not be read, or is not a regular file.
        CorruptData: truncated or malformed.
        UnsupportedModel: loading the file would run code, the file is larger than `UNMAPPED_BYTES` and cannot be
            mapped, or a tensor is not a plain array of numbers.
        BudgetInfeasible, ResourceExhausted: the file is larger than the memory, and cannot be mapped for that or
            another reason.

    Cost: reads the pickle and up to 64 samples of 4 KiB; a file that cannot be mapped, as a whole.
    """
    nbytes, is_zip = _kind(path)
    if is_zip:
        _check_archive(path)
        tensors = _load(path, mapped=True)
        regions = _mapped_regions()
        entries = {name: _entry(name, tensor, _mapped_place(path, tensor, regions, nbytes)) for name, tensor in tensors}
        _compare_samples(path, tensors, entries)
        return entries
    if nbytes > UNMAPPED_BYTES:
        raise UnsupportedModel(
            f"shard {path} was written before torch 1.6 and cannot be mapped; it has {nbytes} bytes, of such a shard "
            f"at most {UNMAPPED_BYTES} are read into memory",
            next_step=_SAVE_AGAIN,
        )
    memory_headroom().require(nbytes, f"shard {path}, which cannot be mapped,")
    return _moved(_load(path, mapped=False))


def _kind(path: Path) -> tuple[int, bool]:
    """Returns the file's size, and whether it is a zip archive."""
    try:
        with open(open_regular_file(path), "rb") as file:
            head = file.read(64)
            nbytes = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise NotFound(f"shard {path} does not exist", next_step=DOWNLOAD_AGAIN) from None
    except OSError as error:
        raise InvalidRequest(f"cannot read shard {path}: {reason_of(error)}", next_step=CHECK_ACCESS) from None
    refuse_pointer(path, head, nbytes)
    return nbytes, head.startswith(_ZIP_MAGIC)


def _check_archive(path: Path) -> None:
    """Refuses archives that torch would not map, or whose pickle is larger than that of any checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            orders = [archive.read(record) for record in records if record.filename.endswith("/byteorder")]
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, EOFError, OSError) as error:
        _refuse(path, f"it is truncated or no zip archive ({first_line(error)})")
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise UnsupportedModel(
            f"shard {path} is a TorchScript archive: it holds code beside the weights", next_step=_SAFETENSORS
        )
    if compressed := [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]:
        _refuse(path, f"its record {compressed[0][:200]!r} is compressed, as torch.save leaves none")
    if b"big" in orders:
        raise UnsupportedModel(f"the numbers of shard {path} are big-endian", next_step=_SAVE_AGAIN)
    pickle_bytes = max((record.file_size for record in records if record.filename.endswith("data.pkl")), default=0)
    if pickle_bytes > MAX_PICKLE_BYTES:
        _refuse(path, f"its table of tensors has {pickle_bytes} bytes, the limit is {MAX_PICKLE_BYTES}")


def _load(path: Path, *, mapped: bool) -> list[tuple[str, torch.Tensor]]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL:?\s+([\w.]+)|(unrecognized function|Can only create new object)", str(error)):
            raise UnsupportedModel(
                f"shard {path} holds more than weights: loading it would call {code[1] or 'a function of its own'}, "
                "and code of a checkpoint never runs",
                next_step=f"{_SAFETENSORS}; do not load this file with other tools unless you trust it",
            ) from None
        _refuse(path, f"its table of tensors cannot be read ({_problem(error)})")
    except RuntimeError as error:
        if "unable to mmap" in str(error) and os.strerror(errno.ENOMEM) in str(error):
            raise ResourceExhausted(
                f"shard {path} cannot be mapped: torch asks for memory of the file's size, and the kernel promises no "
                "more than memory and swap",
                next_step=f"add swap space, or on a larger machine {_SAVE_AGAIN}",
            ) from None
        _refuse(path, f"torch cannot load it ({_problem(error)})")
    except Exception as error:  # a malformed file can make torch raise any exception: translated here
        _refuse(path, f"torch cannot load it ({_problem(error)})")
    if not isinstance(content, Mapping):
        _refuse(path, f"it holds a {type(content).__name__}, not tensors by name")
    # A value that is no tensor fills no parameter; if the model has one of this name, the coverage check reports it.
    tensors = [(str(name), value.detach()) for name, value in content.items() if isinstance(value, torch.Tensor)]
    for name, tensor in tensors:
        _check_plain(path, name, tensor)
    return tensors


def _problem(error: Exception) -> str:
    """Returns the line of torch's message that tells the cause; the first line is about `weights_only`."""
    lines = [line.strip() for line in str(error).splitlines() if "WeightsUnpickler error" in line]
    return lines[0] if lines else first_line(error)


def _check_plain(path: Path, name: str, tensor: torch.Tensor) -> None:
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.is_neg() or tensor.is_conj() or tensor.dtype not in _DTYPE_NAMES:
        raise UnsupportedModel(
            f"tensor {name!r} in shard {path} is {tensor.dtype} on {tensor.device} ({tensor.layout}), no plain array",
            next_step=_SAFETENSORS,
        )


def _entry(name: str, tensor: torch.Tensor, storage: _Place) -> TensorEntry:
    shape, steps = tuple(tensor.shape), row_major(tensor.shape) if tensor.is_contiguous() else tensor.stride()
    last = sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    return TensorEntry(
        name, _DTYPE_NAMES[tensor.dtype], shape, storage.path,
        storage.offset + int(tensor.storage_offset()) * tensor.itemsize,
        (last + 1) * tensor.itemsize if tensor.numel() else 0, steps,
    )  # fmt: skip


class _Region(NamedTuple):
    """A mapped range of addresses; `offset` is that of the first byte in the mapped file."""

    begin: int
    end: int
    offset: int


def _mapped_regions() -> list[_Region]:
    """Lists the files that are mapped into this process, by ascending address."""
    regions = []
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        addresses, _, offset, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            begin, end = addresses.split("-")
            regions.append(_Region(int(begin, 16), int(end, 16), int(offset, 16)))
    return regions


def _mapped_place(path: Path, tensor: torch.Tensor, regions: list[_Region], file_bytes: int) -> _Place:
    """Finds the place of a tensor's storage in the mapped file."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return _Place(path, 0)
    address = storage.data_ptr()
    index = bisect_right(regions, address, key=lambda region: region.begin) - 1
    offset = address - regions[index].begin + regions[index].offset if index >= 0 else -1
    if offset < 0 or address >= regions[index].end or offset + storage.nbytes() > file_bytes:
        _refuse(path, f"a storage of {storage.nbytes()} bytes lies outside the file")
    return _Place(path, offset)


def _compare_samples(path: Path, tensors: list[tuple[str, torch.Tensor]], entries: Mapping[str, TensorEntry]) -> None:
    """Compares bytes of the file with bytes that torch loaded, in tensors that are spread over the shard."""
    with closing(PieceReader()) as reader:
        for name, tensor in tensors[:: -(-len(tensors) // _SAMPLES) or 1]:
            entry = entries[name]
            loaded = tensor.as_strided((entry.nbytes // tensor.itemsize,), (1,)).view(torch.uint8)
            begin = (entry.nbytes - min(entry.nbytes, _SAMPLE_BYTES)) // 2
            sample = bytearray(min(entry.nbytes, _SAMPLE_BYTES))
            reader.read((ByteRange(path, entry.offset + begin, len(sample)),), memoryview(sample))
            if sample != loaded[begin : begin + len(sample)].numpy().tobytes():
                _refuse(path, f"torch loads other bytes of tensor {name!r} than the file has at {entry.offset}")


def _moved(tensors: list[tuple[str, torch.Tensor]]) -> dict[str, TensorEntry]:
    """Moves the storages of tensors into a file in memory; a storage is freed with its last tensor."""
    file = MemoryFile.create()
    places: dict[int, _Place] = {}
    entries = {}
    while tensors:
        name, tensor = tensors.pop(0)
        storage = tensor.untyped_storage()
        if not storage.nbytes():
            places[storage.data_ptr()] = _Place(file, 0)
        elif storage.data_ptr() not in places:
            content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data
            places[storage.data_ptr()] = _Place(file, file.append(content))
        entries[name] = _entry(name, tensor, places[storage.data_ptr()])
    return entries


def _refuse(path: Path, fault: str) -> NoReturn:
    raise CorruptData(f"shard {path} cannot be used: {fault}", next_step=DOWNLOAD_AGAIN)
