"""How one expert is recovered: which bytes of its chunk slots become which bytes of the tensor slot."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from zipmoe.errors import CorruptData
from zipmoe.store.format.checksum import xxh3
from zipmoe.store.format.layout import ChunkSpan, ExpertRecord, ExpertSpec
from zipmoe.store.format.manifest import Manifest
from zipmoe.types import ExpertKey

CACHED_PLANS = 1024
"""Plans that are kept; about 4 KB each."""


class RecoverUnit(NamedTuple):
    """One E-chunk of one tensor, and with it the rows that it covers: where it is read and written.

    `e_chunk` is a place in the E slot, `sm` one in the SM slot, `out` one in the tensor slot.
    """

    tensor: int
    e_chunk: slice
    sm: slice
    out: slice


class RecoverPlan:
    """How one expert is recovered; the same for every recovery of it.

    Attributes:
        units: in order of tensors and rows.
        unit_counts: E-chunks of each tensor.
        recovered_bytes: bytes of the bf16 weights.
    """

    __slots__ = ("_record", "_spec", "recovered_bytes", "unit_counts", "units")

    def __init__(self, record: ExpertRecord, spec: ExpertSpec) -> None:
        self._record = record
        self._spec = spec
        self.recovered_bytes = spec.weight_bytes
        self.unit_counts = tuple(len(tensor.e_chunks) for tensor in record.tensors)
        self.units = tuple(
            self._unit(tensor, e_chunk) for tensor, one in enumerate(record.tensors) for e_chunk in one.e_chunks
        )

    def check(self, tensor: int, tensor_slot: memoryview, key: ExpertKey) -> None:
        """Compares a recovered tensor with the checkpoint's.

        Raises:
            CorruptData: it is not what was packed.
        """
        record = self._record.tensors[tensor]
        begin = self._spec.tensor_offsets[tensor]
        if xxh3(tensor_slot[begin : begin + record.spec.nbytes]) != record.xxh3:
            raise CorruptData(f"{key}: {record.spec.name} was recovered with a wrong checksum")

    def _unit(self, tensor: int, e_chunk: ChunkSpan) -> RecoverUnit:
        record = self._record.tensors[tensor]
        first = e_chunk.first_row * record.spec.cols
        count = e_chunk.rows * record.spec.cols
        sm_begin = record.sm_chunk.offset - self._record.e_bytes + first
        out_begin = self._spec.tensor_offsets[tensor] + 2 * first
        return RecoverUnit(
            tensor,
            slice(e_chunk.offset, e_chunk.end),
            slice(sm_begin, sm_begin + count),
            slice(out_begin, out_begin + 2 * count),
        )


def recover_planner(manifest: Manifest) -> Callable[[ExpertKey], RecoverPlan]:
    """Makes the function that plans recoveries; it remembers the latest plans.

    Returns:
        A function of the expert that raises NotFound for an unknown one.
    """

    @lru_cache(CACHED_PLANS)
    def plan(key: ExpertKey) -> RecoverPlan:
        return RecoverPlan(manifest.record(key), manifest.layers[key.layer].spec)

    return plan
