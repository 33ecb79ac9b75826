"""Describes a checkpoint to the packer: experts, dense tensors and files, as pieces of the checkpoint's shards.

A piece is a byte range of a shard, or bytes that are derived from byte ranges, for example by a cast. The catalogue of
`zipmoe.model` creates these descriptions for hub checkpoints. The packer and `verify --against` read them. The names
and the arrangement of a particular checkpoint are unknown here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from zipmoe.store.format.fields import TEMPLATE_FOLDER
from zipmoe.store.format.layout import ExpertSpec, TensorSpec
from zipmoe.store.format.measured import MeasuredSizes


@dataclass(frozen=True)
class ByteRange:
    """A range of `nbytes` raw bytes at `offset` of a checkpoint shard."""

    path: Path
    offset: int
    nbytes: int


RangeRead: TypeAlias = Callable[[ByteRange, memoryview], None]
"""Reads a byte range into a writable buffer of its size; raises as `PieceReader.read` does."""


class DerivedPiece(Protocol):
    """Bytes of a tensor that are computed from a checkpoint, for example cast to bf16."""

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""

    @property
    def sources(self) -> Sequence[ByteRange]:
        """The byte ranges from which the result is computed; one that pieces share is listed by one of them."""

    @property
    def seekable(self) -> bool:
        """Whether a part of the result costs no more than its share of the whole."""

    @property
    def recipe(self) -> str:
        """How the result is computed, for the fingerprint: no path, no offset in a shard."""

    def derive(self, read: RangeRead, target: memoryview, skip: int) -> None:
        """Computes the result from byte `skip` on, until `target` is full.

        Args:
            read: reads byte ranges of the checkpoint.
            target: writable bytes, at most `nbytes - skip`.
            skip: bytes at the start of the result that are left out.

        Raises:
            NotFound, InvalidRequest, CorruptData: a byte range cannot be read. `target` is undefined then.

        Thread: any number of threads at once.
        """


Piece: TypeAlias = ByteRange | DerivedPiece
"""A part of a tensor, as bytes."""


def ranges_of(pieces: Iterable[Piece]) -> Iterator[ByteRange]:
    """Yields the byte ranges that pieces are read or computed from."""
    for piece in pieces:
        if isinstance(piece, ByteRange):
            yield piece
        else:
            yield from piece.sources


@dataclass(frozen=True)
class TensorSource:
    """A bf16 matrix of an expert: the concatenation of `pieces`, in the layout of the model's module."""

    spec: TensorSpec
    pieces: tuple[Piece, ...]


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
    """A tensor that every token needs: the concatenation of `pieces`. `dtype` is a safetensors name ("BF16")."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return sum(piece.nbytes for piece in self.pieces)


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
    def measured(self) -> MeasuredSizes | None:
        """Sizes that differ from those that config.json tells; None if there are none."""

    @property
    def left_out(self) -> Sequence[str]:
        """Paths of the modules whose tensors are not packed: the towers of a multimodal model."""

    @property
    def mtp_layers(self) -> int:
        """Layers for multi-token prediction; `layers` has their MoE layers last."""

    @property
    def chat_templates(self) -> Sequence[Path]:
        """Paths of the chat templates, which are copied verbatim into the folder `additional_chat_templates`."""


def copied_files(source: ExpertSource) -> list[tuple[str, Path]]:
    """Returns the files that are copied verbatim, with their names in the store, sorted by these names."""
    files = [(path.name, path) for path in source.model_files]
    files += [(f"{TEMPLATE_FOLDER}/{path.name}", path) for path in source.chat_templates]
    return sorted(files)
