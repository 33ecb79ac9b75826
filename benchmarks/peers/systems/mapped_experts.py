"""Experts as views of memory: of mapped shards, without a copy, or of copies in anonymous memory."""

from __future__ import annotations

import mmap
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import torch

from zipmoe.model.experts.provider import Arrival, CheckpointProvider, InProcessProvider
from zipmoe.model.raw_tensor import empty_bytes, read_pieces
from zipmoe.store.pack.source import ByteRange, LayerSource, TensorSource


class MappedExperts(InProcessProvider):
    """An `ExpertProvider` whose matrices are the page cache's own pages. Nothing advises the kernel about them."""

    def __init__(self, layers: Sequence[LayerSource]) -> None:
        """Maps every shard once."""
        self._shards: dict[Path, torch.Tensor] = {}
        self._layers = [
            [tuple(self._view(matrix) for matrix in expert) for expert in layer.experts] for layer in layers
        ]

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        """Yields the experts in the order of their ids."""
        for expert in rows:
            yield Arrival(expert, self._layers[layer][expert])

    def _view(self, matrix: TensorSource) -> torch.Tensor:
        piece = in_one_piece(matrix)
        if piece is None:
            return in_memory(matrix)
        if piece.path not in self._shards:
            with open(piece.path, "rb") as file:
                # Copy on write, of which nothing is ever written: torch has no read-only tensors.
                mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            self._shards[piece.path] = torch.frombuffer(mapped, dtype=torch.uint8)
        raw = self._shards[piece.path][piece.offset : piece.offset + piece.nbytes]
        return raw.view(torch.bfloat16).view(matrix.spec.rows, matrix.spec.cols)


class ResidentExperts(InProcessProvider):
    """An `ExpertProvider` with all experts in anonymous memory."""

    def __init__(self, layers: Sequence[LayerSource]) -> None:
        """Reads them all."""
        reader = CheckpointProvider(layers)
        self._layers = [
            [arrival.matrices for arrival in reader.experts(index, dict.fromkeys(range(len(layer.experts)), 1))]
            for index, layer in enumerate(layers)
        ]
        reader.close()

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        """Yields the experts in the order of their ids."""
        for expert in rows:
            yield Arrival(expert, self._layers[layer][expert])


def in_one_piece(matrix: TensorSource) -> ByteRange | None:
    """Where a matrix is, its pieces joined; None if they are cast or do not adjoin, as where the next shard begins."""
    first, *others = matrix.pieces
    if not isinstance(first, ByteRange):
        return None
    end = first.offset + first.nbytes
    for piece in others:
        if not isinstance(piece, ByteRange) or piece.path != first.path or piece.offset != end:
            return None
        end += piece.nbytes
    return ByteRange(first.path, first.offset, end - first.offset)


def in_memory(matrix: TensorSource) -> torch.Tensor:
    """Reads a matrix into memory of its own: those few that are not in one piece stay there."""
    storage, view = empty_bytes(matrix.spec.nbytes)
    read_pieces(matrix.pieces, view, matrix.spec.name)
    return storage.view(torch.bfloat16).view(matrix.spec.rows, matrix.spec.cols)
