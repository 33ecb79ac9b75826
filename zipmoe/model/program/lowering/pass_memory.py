"""Plans the memory of a replayed pass: every storage of the recording gets a place, used again after its last use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import torch

from zipmoe.model.program.recording.tape import storage_of

ALIGNMENT = 64


@dataclass(frozen=True)
class StorageUse:
    """What a step reads and writes: storages, by `storage_of`."""

    reads: frozenset[int]
    writes: frozenset[int]

    @classmethod
    def of(cls, reads: Iterable[torch.Tensor], writes: Iterable[torch.Tensor]) -> StorageUse:
        """Collects the storages of tensors."""
        return cls(frozenset(map(storage_of, reads)), frozenset(map(storage_of, writes)))

    def joined(self, other: StorageUse) -> StorageUse:
        """Returns what two steps read and write together."""
        return StorageUse(self.reads | other.reads, self.writes | other.writes)

    @property
    def touched(self) -> frozenset[int]:
        """Storages that are read or written."""
        return self.reads | self.writes

    def may_follow(self, other: StorageUse) -> bool:
        """Whether a step of this use, which comes before `other`, may come after it instead."""
        return self.writes.isdisjoint(other.reads) and not other.writes & self.touched


class PassMemory:
    """One block of memory for the written storages of a recording. All other storages stay where they are."""

    def __init__(self, uses: Sequence[StorageUse], sizes: Mapping[int, int], lasting: Iterable[int] = ()) -> None:
        """Places the storages.

        Args:
            uses: the steps in the order of the replay.
            sizes: bytes of each storage that a step writes, or that is an input of the pass.
            lasting: storages that keep their content during the whole pass: its inputs and results.
        """
        spans: dict[int, list[int]] = {each: [0, len(uses)] for each in lasting}
        for index, use in enumerate(uses):
            for storage in use.touched & sizes.keys():
                spans.setdefault(storage, [index, index])[1] = max(index, spans.get(storage, [0, 0])[1])
        self._offsets: dict[int, int] = {}
        self.nbytes = 0
        placed: list[tuple[int, int, list[int]]] = []  # begin, end and span of each storage, by begin
        for storage in sorted(spans, key=lambda each: (spans[each][0], -sizes[each])):
            span, nbytes = spans[storage], -(-max(sizes[storage], 1) // ALIGNMENT) * ALIGNMENT
            begin = 0
            for other_begin, other_end, other in placed:
                if other[0] <= span[1] and span[0] <= other[1]:
                    if begin + nbytes <= other_begin:
                        break
                    begin = max(begin, other_end)
            placed.append((begin, begin + nbytes, span))
            placed.sort(key=lambda each: each[0])
            self._offsets[storage] = begin
            self.nbytes = max(self.nbytes, begin + nbytes)
        self.block = _aligned(self.nbytes)

    def twin(self) -> PassMemory:
        """Returns the same places in a block of its own, with a copy of the content."""
        other = copy(self)
        other.block = _aligned(self.nbytes)
        other.block.copy_(self.block)
        return other

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a recorded tensor has a place here; if not, it is a constant or a weight."""
        return storage_of(tensor) in self._offsets

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the replay's tensor in the place of a recorded one; constants and weights are returned themselves."""
        if storage_of(tensor) not in self._offsets:
            return tensor
        begin = self._offsets[storage_of(tensor)]
        whole = self.block[begin : begin + tensor.untyped_storage().nbytes()].view(tensor.dtype)
        return whole.as_strided(tensor.shape, tensor.stride(), whole.storage_offset() + tensor.storage_offset())


def _aligned(nbytes: int) -> torch.Tensor:
    block = torch.zeros(nbytes + ALIGNMENT, dtype=torch.uint8)
    skipped = -block.data_ptr() % ALIGNMENT
    return block[skipped : skipped + nbytes]
