"""Plans one recovery: the bytes of the chunk slots that become the bytes of the tensor slot.

Recoveries of the same expert share a plan.
"""

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
"""Number of plans that are kept; a plan takes about 4 KB."""


class RecoverUnit(NamedTuple):
    """Places of an E-chunk, of the SM bytes of the same rows, and of the recovered rows.

    `tensor` is the index of the tensor. `e_chunk` is a range of the E slot, `sm` of the SM slot, `out` of the tensor
    slot.
    """

    tensor: int
    e_chunk: slice
    sm: slice
    out: slice


class RecoverPlan:
    """The E-chunks of a recovery and the places that they are recovered to.

    Attributes:
        units: the E-chunks, in order of tensors and rows.
        unit_counts: number of E-chunks of each tensor.
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
        """Verifies the checksum of a recovered tensor.

        Raises:
            CorruptData: the tensor differs from the checkpoint's.
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
    """Makes the function that plans recoveries and caches the latest plans.

    Returns:
        A function of the expert that raises NotFound for an unknown expert.
    """

    @lru_cache(CACHED_PLANS)
    def plan(key: ExpertKey) -> RecoverPlan:
        return RecoverPlan(manifest.record(key), manifest.layers[key.layer].spec)

    return plan
