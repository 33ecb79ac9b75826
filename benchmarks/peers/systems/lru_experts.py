"""Experts read with O_DIRECT into slots of bf16, of which the least recently used one is lost: no more than that."""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import torch

from benchmarks.peers.systems.mapped_experts import in_memory, in_one_piece
from zipmoe.errors import BudgetInfeasible, CorruptData
from zipmoe.model.experts.provider import Arrival, InProcessProvider
from zipmoe.model.linear.matrices import Matrices
from zipmoe.store.pack.source import LayerSource, TensorSource
from zipmoe.types import ExpertKey

PAGE: Final = 4096
READ_BYTES: Final = 4 << 20
IO_THREADS: Final = 4
READ_AT_ONCE: Final = 8
"""Experts that are read together, before any of them is computed."""


class _SlotPlace(NamedTuple):
    """Whole pages of a shard around one matrix, and where they go in a slot."""

    path: Path
    file_offset: int
    nbytes: int
    slot_offset: int
    matrix_offset: int
    rows: int
    cols: int


class LruExperts(InProcessProvider):
    """An `ExpertProvider` that reads what it lacks, then computes: nothing overlaps.

    Matrices are used where they were read, without a copy. Thread: one at a time.
    """

    def __init__(self, layers: Sequence[LayerSource], slots: int) -> None:
        """Allocates the slots.

        Args:
            layers: where experts are; matrices that are not in one piece are kept in memory beside the slots.
            slots: experts that are held.

        Raises:
            BudgetInfeasible: so few slots do not hold what is read together.
        """
        if slots < READ_AT_ONCE:
            raise BudgetInfeasible(f"{slots} slots for experts, at least {READ_AT_ONCE} are needed")
        self._places = [[_places(expert) for expert in layer.experts] for layer in layers]
        self._slot_bytes = slot_bytes(layers)
        self._memory = memoryview(mmap.mmap(-1, slots * self._slot_bytes))
        self._free = list(range(slots))
        self._held: OrderedDict[ExpertKey, int] = OrderedDict()
        self._files: dict[Path, int] = {}
        self._pool = ThreadPoolExecutor(IO_THREADS, "io")

    def experts(self, layer: int, rows: Mapping[int, int]) -> Generator[Arrival, None, None]:
        """Yields the experts that are held, then reads the others in groups; raises CorruptData on a short read."""
        missing = []
        for expert in rows:
            key = ExpertKey(layer, expert)
            if key in self._held:
                self._held.move_to_end(key)
                yield Arrival(expert, self._matrices(key))
            else:
                missing.append(key)
        for start in range(0, len(missing), READ_AT_ONCE):
            group = missing[start : start + READ_AT_ONCE]
            self._read(group)
            for key in group:
                yield Arrival(key.expert, self._matrices(key))

    def _read(self, keys: Sequence[ExpertKey]) -> None:
        reads = []
        for key in keys:
            slot = self._free.pop() if self._free else self._held.popitem(last=False)[1]
            self._held[key] = slot
            for place in self._places[key.layer][key.expert]:
                if isinstance(place, torch.Tensor):
                    continue
                begin = slot * self._slot_bytes + place.slot_offset
                for offset in range(0, place.nbytes, READ_BYTES):
                    nbytes = min(READ_BYTES, place.nbytes - offset)
                    memory = self._memory[begin + offset : begin + offset + nbytes]
                    reads.append((self._file(place.path), memory, place.file_offset + offset))
        for _ in self._pool.map(_read_pages, reads):
            pass

    def _matrices(self, key: ExpertKey) -> Matrices:
        begin = self._held[key] * self._slot_bytes
        matrices = []
        for place in self._places[key.layer][key.expert]:
            if isinstance(place, torch.Tensor):
                matrices.append(place)
                continue
            count = place.rows * place.cols
            flat = torch.frombuffer(self._memory, dtype=torch.bfloat16, count=count, offset=begin + place.matrix_offset)
            matrices.append(flat.view(place.rows, place.cols))
        return tuple(matrices)

    def _file(self, path: Path) -> int:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY | os.O_DIRECT)
        return self._files[path]


def slot_bytes(layers: Sequence[LayerSource]) -> int:
    """Bytes of a slot: of the largest expert, with the rests of pages around its matrices."""
    matrices = (expert for layer in layers for expert in layer.experts)
    return max(sum(-(-matrix.spec.nbytes // PAGE) * PAGE + PAGE for matrix in expert) for expert in matrices)


def _places(expert: Sequence[TensorSource]) -> list[_SlotPlace | torch.Tensor]:
    places: list[_SlotPlace | torch.Tensor] = []
    slot_offset = 0
    for matrix in expert:
        piece, spec = in_one_piece(matrix), matrix.spec
        if piece is None:
            places.append(in_memory(matrix))
            continue
        begin = piece.offset // PAGE * PAGE
        nbytes = -(-(piece.offset + piece.nbytes - begin) // PAGE) * PAGE
        inside = slot_offset + piece.offset - begin
        places.append(_SlotPlace(piece.path, begin, nbytes, slot_offset, inside, spec.rows, spec.cols))
        slot_offset += nbytes
    return places


def _read_pages(read: tuple[int, memoryview, int]) -> None:
    file, memory, offset = read
    size = os.fstat(file).st_size
    count = os.preadv(file, [memory], offset)
    if count < min(len(memory), size - offset):  # the last page of a shard is not whole
        raise CorruptData(f"a read of {len(memory)} bytes at {offset} gave {count}")
