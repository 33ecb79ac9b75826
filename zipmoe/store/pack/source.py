"""Describes a checkpoint to the packer: experts, dense tensors and files, as byte ranges of the checkpoint's shards.

The catalogue of `zipmoe.model` creates these descriptions for hub checkpoints. The packer and `verify --against` read
them. The names and the arrangement of a particular checkpoint are unknown here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zipmoe.store.format.fields import TEMPLATE_FOLDER
from zipmoe.store.format.layout import ExpertSpec, TensorSpec


@dataclass(frozen=True)
class ByteRange:
    """A range of `nbytes` raw bytes at `offset` of a checkpoint shard."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class TensorSource:
    """A bf16 matrix of an expert: the concatenation of `pieces`, in the layout of the model's module."""

    spec: TensorSpec
    pieces: tuple[ByteRange, ...]


@dataclass(frozen=True)
class LayerSource:
    """The routed experts of a MoE layer. `experts[i]` are the matrices of expert i; all experts have the same spec."""

    module: str
    experts: Sequence[tuple[TensorSource, ...]]

    @property
    def spec(self) -> ExpertSpec:
        """Names and shapes of an expert's matrices, taken from expert 0."""
        return ExpertSpec(tuple(tensor.spec for tensor in self.experts[0]))


@dataclass(frozen=True)
class DenseTensor:
    """A tensor that every token needs. `dtype` is a safetensors name ("BF16"); the bytes are in `pieces` or `data`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[ByteRange, ...] = ()
    data: bytes | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in `data` or in `pieces`."""
        return sum(piece.nbytes for piece in self.pieces) if self.data is None else len(self.data)


class ExpertSource(Protocol):
    """A classified checkpoint: MoE layers in forward order, all other tensors dense."""

    @property
    def family(self) -> str:
        """The `model_type` of the model in transformers."""

    @property
    def layers(self) -> Sequence[LayerSource]:
        """The Mixture-of-Experts layers in forward order."""

    @property
    def dense_tensors(self) -> Iterable[DenseTensor]:
        """All other tensors. The iterable can be iterated more than once."""

    @property
    def model_files(self) -> Sequence[Path]:
        """Paths of config.json, tokenizer and generation files, which are copied verbatim under the same names."""

    @property
    def chat_templates(self) -> Sequence[Path]:
        """Paths of the chat templates, which are copied verbatim into the folder `additional_chat_templates`."""


def copied_files(source: ExpertSource) -> list[tuple[str, Path]]:
    """Returns the files that are copied verbatim, with their names in the store, sorted by these names."""
    files = [(path.name, path) for path in source.model_files]
    files += [(f"{TEMPLATE_FOLDER}/{path.name}", path) for path in source.chat_templates]
    return sorted(files)
