"""Plans one recovery: the bytes of the chunk slots that become the bytes of the tensor slot.

Recoveries of the same expert share a plan. An expert is recovered to bf16 one E-chunk at a time, and to an in-memory
form one matrix at a time, since a form has tiles over the rows of several chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from zipmoe.arena.tensor_form import BF16, TensorForm, tensor_rooms
from zipmoe.errors import CorruptData
from zipmoe.store.format.checksum import xxh3
from zipmoe.store.format.layout import ChunkSpan, ExpertRecord, ExpertSpec
from zipmoe.store.format.manifest import Manifest
from zipmoe.types import ExpertKey

if TYPE_CHECKING:
    from typing_extensions import Buffer

CACHED_PLANS = 1024
"""Number of plans that are kept; a plan takes about 4 KB."""


class RowsPlace(NamedTuple):
    """Places of an E-chunk in the E slot and of the SM bytes of the same rows in the SM slot."""

    rows: int
    e_chunk: slice
    sm: slice


class RecoverUnit(NamedTuple):
    """Rows that are recovered together: their places, and the range of the tensor slot that they are recovered to.

    `tensor` is the index of the tensor.
    """

    tensor: int
    parts: tuple[RowsPlace, ...]
    out: slice


class RecoverPlan:
    """The units of a recovery, and the places that they are recovered to.

    Attributes:
        units: the units, in order of tensors and rows.
        unit_counts: number of units of each tensor.
        recovered_bytes: bytes of the bf16 weights.
        rooms: place of each tensor in the tensor slot.
    """

    __slots__ = ("_record", "recovered_bytes", "rooms", "unit_counts", "units")

    def __init__(self, record: ExpertRecord, spec: ExpertSpec, form: TensorForm) -> None:
        self._record = record
        self.recovered_bytes = spec.weight_bytes
        self.rooms = tensor_rooms(spec, form)
        split = self._by_chunk if form == BF16 else self._whole
        units = [split(tensor) for tensor in range(len(record.tensors))]
        self.unit_counts = tuple(map(len, units))
        self.units = tuple(unit for of_tensor in units for unit in of_tensor)

    def check(self, tensor: int, weights: Buffer, key: ExpertKey) -> None:
        """Verifies the checksum of a recovered tensor.

        Args:
            tensor: index of the tensor.
            weights: its bf16 bytes.
            key: the expert.

        Raises:
            CorruptData: the tensor differs from the checkpoint's.
        """
        record = self._record.tensors[tensor]
        if xxh3(weights) != record.xxh3:
            raise CorruptData(f"{key}: {record.spec.name} was recovered with a wrong checksum")

    def _by_chunk(self, tensor: int) -> list[RecoverUnit]:
        begin, cols = self.rooms[tensor].begin, 2 * self.rooms[tensor].cols
        units = []
        for chunk in self._record.tensors[tensor].e_chunks:
            first = begin + chunk.first_row * cols
            units.append(RecoverUnit(tensor, (self._place(tensor, chunk),), slice(first, first + chunk.rows * cols)))
        return units

    def _whole(self, tensor: int) -> list[RecoverUnit]:
        room = self.rooms[tensor]
        places = tuple(self._place(tensor, chunk) for chunk in self._record.tensors[tensor].e_chunks)
        return [RecoverUnit(tensor, places, slice(room.begin, room.end))]

    def _place(self, tensor: int, e_chunk: ChunkSpan) -> RowsPlace:
        record = self._record.tensors[tensor]
        sm_begin = record.sm_chunk.offset - self._record.e_bytes + e_chunk.first_row * record.spec.cols
        sm = slice(sm_begin, sm_begin + e_chunk.rows * record.spec.cols)
        return RowsPlace(e_chunk.rows, slice(e_chunk.offset, e_chunk.end), sm)


def recover_planner(manifest: Manifest, form: TensorForm = BF16) -> Callable[[ExpertKey], RecoverPlan]:
    """Makes the function that plans recoveries to a form and caches the latest plans.

    Returns:
        A function of the expert that raises NotFound for an unknown expert.
    """

    @lru_cache(CACHED_PLANS)
    def plan(key: ExpertKey) -> RecoverPlan:
        return RecoverPlan(manifest.record(key), manifest.layers[key.layer].spec, form)

    return plan
