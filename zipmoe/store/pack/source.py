"""What the packer reads: experts, dense tensors and files of a checkpoint, as places of raw bytes in its shards.

The catalogue of `zipmoe.model` produces these for hub checkpoints; the packer and `verify --against` consume them.
Nothing here knows how a checkpoint is named or arranged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zipmoe.store.format.layout import ExpertSpec, TensorSpec


@dataclass(frozen=True)
class ByteRange:
    """`nbytes` raw tensor bytes at `offset` of a checkpoint shard."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class TensorSource:
    """One bf16 matrix of an expert; its bytes are the pieces one after the other, in the module's own layout."""

    spec: TensorSpec
    pieces: tuple[ByteRange, ...]


@dataclass(frozen=True)
class LayerSource:
    """The routed experts of one MoE layer; `experts[i]` are the matrices of expert i, all of one spec."""

    module: str
    experts: Sequence[tuple[TensorSource, ...]]

    @property
    def spec(self) -> ExpertSpec:
        """The matrices of every expert of this layer, taken from the first one."""
        return ExpertSpec(tuple(tensor.spec for tensor in self.experts[0]))


@dataclass(frozen=True)
class DenseTensor:
    """A tensor that every token needs: `dtype` as safetensors names it ("BF16"), bytes in `pieces` or in `data`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[ByteRange, ...] = ()
    data: bytes | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, as its source holds them."""
        return sum(piece.nbytes for piece in self.pieces) if self.data is None else len(self.data)


class ExpertSource(Protocol):
    """A checkpoint, classified: layers in forward order, everything else dense."""

    @property
    def family(self) -> str:
        """The model's `model_type`, as transformers names it."""

    @property
    def layers(self) -> Sequence[LayerSource]:
        """The Mixture-of-Experts layers in forward order."""

    @property
    def dense_tensors(self) -> Iterable[DenseTensor]:
        """All other tensors; iterable more than once."""

    @property
    def model_files(self) -> Sequence[Path]:
        """config.json, tokenizer and generation files, to be copied verbatim under their own names."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors, routed and dense."""
