"""A hub checkpoint as one GGUF file: every weight as it is, in the order and under the names that llama.cpp wants."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from transformers import AutoConfig

from benchmarks.peers.systems.conversion.architecture import Architecture, Config, MetadataValue, TensorPlace, Values
from benchmarks.peers.systems.conversion.architectures import architecture_of
from zipmoe.errors import Unavailable, UnsupportedModel
from zipmoe.model.checkpoint.checkpoint import Checkpoint, open_checkpoint
from zipmoe.model.checkpoint.shard import TensorEntry

_PIECE_BYTES: Final = 64 << 20
_DTYPES: Final[Mapping[str, Any]] = {"BF16": np.uint16, "F32": np.float32}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        name: llama.cpp's.
        shape: rows before columns, experts before both.
        fp32: whether the values are float32; otherwise they are bf16.
        pieces: gives the values, one piece after the other.
    """

    name: str
    shape: tuple[int, ...]
    fp32: bool
    pieces: Callable[[], Iterator[Values]]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape)) * (4 if self.fp32 else 2)


def config_of(src: Path) -> Config:
    """Reads the configuration of a checkpoint, with every default filled in."""
    config: Config = AutoConfig.from_pretrained(src).to_dict()
    return config


def tensors_of(checkpoint: Checkpoint, architecture: Architecture, config: Config) -> list[GgufTensor]:
    """Lists the tensors of the file, in the order of their names.

    Raises:
        UnsupportedModel: a tensor has no place or a dtype that is not converted, or experts of a layer differ.
    """
    sources: dict[str, dict[int, TensorEntry]] = {}
    places: dict[str, TensorPlace] = {}
    for key, entry in checkpoint.tensors.items():
        if entry.dtype not in _DTYPES:
            raise UnsupportedModel(f"{key} has dtype {entry.dtype}, only {' and '.join(_DTYPES)} are converted")
        pattern, numbers = _numbers_apart(key)
        found = architecture.places(pattern)
        if not found:
            raise UnsupportedModel(f"there is no place for {key} in a GGUF file of {architecture.name}")
        for place in found:
            name = place.name.replace("#", str(numbers[0])) if numbers else place.name
            places[name] = place
            sources.setdefault(name, {})[numbers[1] if len(numbers) > 1 else -1] = entry
    tensors = [_tensor(name, place, sources[name], config) for name, place in places.items()]
    for name, values in architecture.added(config).items():
        tensors.append(GgufTensor(name, values.shape, True, lambda values=values: iter([values])))
    return sorted(tensors, key=lambda tensor: tensor.name)


def write_gguf(src: Path, path: Path) -> None:
    """Converts a checkpoint.

    Args:
        src: a hub directory, in bf16 but for vectors, of a model type in `ARCHITECTURES`.
        path: where the file goes; written beside first, so that it is complete if it is there.

    Raises:
        Unavailable: the package `gguf` is not installed.
        UnsupportedModel: llama.cpp computes another model, or as `tensors_of`.

    Cost: reads and writes all weights once; memory of the largest tensor that is rearranged.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError as error:
        raise Unavailable("the package gguf is not installed", next_step="pip install 'zipmoe[peers]'") from error
    checkpoint = open_checkpoint(src)
    architecture = architecture_of(checkpoint.config["model_type"])
    config = config_of(src)
    metadata = architecture.metadata_of(config)
    tensors = tensors_of(checkpoint, architecture, config)
    partial = path.with_suffix(".partial")
    writer = GGUFWriter(partial, architecture.name)
    for key, value in metadata.items():
        _describe(writer, f"{architecture.name}.{key}", value)
    writer.add_tokenizer_model("none")  # token ids go in and come out
    for tensor in tensors:
        kind = GGMLQuantizationType.F32 if tensor.fp32 else GGMLQuantizationType.BF16
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float16), tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(_Streamed(tensor))
    writer.close()
    partial.rename(path)


def _describe(writer: Any, key: str, value: MetadataValue) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value)


def _numbers_apart(key: str) -> tuple[str, list[int]]:
    """Divides the name of a tensor into its pattern, with `#` for each number, and the numbers."""
    words = key.split(".")
    return ".".join("#" if word.isdigit() else word for word in words), [int(w) for w in words if w.isdigit()]


def _tensor(name: str, place: TensorPlace, sources: Mapping[int, TensorEntry], config: Config) -> GgufTensor:
    """Makes a tensor of its sources: one, or the same matrix of every expert of a layer, by the expert's number."""
    entries = [entry for _, entry in sorted(sources.items())]
    first = entries[0]
    stacked = -1 not in sources
    if len(entries) > 1 and (not stacked or sorted(sources) != list(range(len(entries)))):
        raise UnsupportedModel(f"{name} has sources {sorted(sources)}, which are not all experts of a layer")
    if any((entry.shape, entry.dtype) != (first.shape, first.dtype) for entry in entries):
        raise UnsupportedModel(f"the experts in {name} differ in shape or dtype")
    shape = tuple(first.shape)
    if place.change:
        dtype = np.float32 if place.fp32 else _DTYPES[first.dtype]
        shape = place.change(np.zeros(shape, dtype), config).shape
    fp32 = place.fp32 or first.dtype == "F32" or len(shape) == 1
    shape = (len(entries), *shape) if stacked else shape

    def pieces() -> Iterator[Values]:
        for entry in entries:
            for values in _read(entry, whole=place.change is not None):
                changed = place.change(_widened(values, place.fp32), config) if place.change else values
                yield _widened(changed, fp32)

    return GgufTensor(name, shape, fp32, pieces)


def _read(source: TensorEntry, *, whole: bool) -> Iterator[Values]:
    """Reads a tensor in its shape, or piece by piece without one."""
    dtype = np.dtype(_DTYPES[source.dtype])
    count = source.nbytes // dtype.itemsize
    if whole:
        yield np.fromfile(source.path, dtype, count, offset=source.offset).reshape(source.shape)
        return
    step = _PIECE_BYTES // dtype.itemsize
    for begin in range(0, count, step):
        offset = source.offset + begin * dtype.itemsize
        yield np.fromfile(source.path, dtype, min(step, count - begin), offset=offset)


def _widened(values: Values, fp32: bool) -> Values:
    if not fp32 or values.dtype == np.float32:
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


class _Streamed:
    """As much of an array as `GGUFWriter` asks for, so that no stack is ever in memory as a whole."""

    def __init__(self, tensor: GgufTensor) -> None:
        self._tensor = tensor
        self.nbytes = tensor.nbytes

    def tofile(self, file: Any) -> None:
        for piece in self._tensor.pieces():
            np.ascontiguousarray(piece).tofile(file)


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
