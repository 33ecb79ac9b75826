"""Computes the costs of an expert's tasks from the measured costs of a machine and the bytes of the expert's record."""

from __future__ import annotations

from typing import Protocol

from zipmoe.residency.state import Residency
from zipmoe.residency.tasks import ExpertCosts, TensorCosts
from zipmoe.store.format.layout import ExpertRecord


class MeasuredCosts(Protocol):
    """Interface to a machine's measured costs, implemented by `zipmoe.planning.costs.Costs`."""

    @property
    def packed_ffn(self) -> object | None:
        """Cost of an FFN from chunks; None where experts cannot be computed straight from their chunks."""

    def channel_s(self, nbytes: int) -> float:
        """Returns the seconds that a read of `nbytes` occupies the I/O channel."""

    def recover_s(self, nbytes: int) -> float:
        """Returns the seconds that one worker takes to recover `nbytes` of bf16."""

    def copy_s(self, nbytes: int) -> float:
        """Returns the seconds to copy `nbytes` to the device that computes."""

    def ffn_s(self, form: Residency, rows: int) -> float:
        """Returns the seconds of one expert's products on `rows` rows, computed from a form."""


def expert_costs(measured: MeasuredCosts, record: ExpertRecord) -> ExpertCosts:
    """Computes the costs of each tensor of an expert.

    The time of an expert's products is divided over the tensors in proportion to the tensors' numbers of weights. Where
    experts cannot be computed straight from their chunks, computing from chunks is assumed to take a recovery on the
    model's thread plus a product.

    Args:
        measured: measured costs of this machine.
        record: record of one expert. The records of a layer's experts differ by a few bytes only.
    """
    weights = sum(tensor.spec.weight_count for tensor in record.tensors)
    return tuple(
        _tensor(
            measured,
            e_bytes=sum(chunk.nbytes for chunk in tensor.e_chunks),
            sm_bytes=tensor.sm_chunk.nbytes,
            nbytes=tensor.spec.nbytes,
            chunk_count=len(tensor.e_chunks),
            share=tensor.spec.weight_count / weights,
        )
        for tensor in record.tensors
    )


def _tensor(
    measured: MeasuredCosts, *, e_bytes: int, sm_bytes: int, nbytes: int, chunk_count: int, share: float
) -> TensorCosts:
    recover_s = measured.recover_s(nbytes)
    full_s, full_2_s = (share * measured.ffn_s(Residency.FULL, rows) for rows in (1, 2))
    if measured.packed_ffn is None:
        packed_s, packed_2_s = recover_s + full_s, recover_s + full_2_s
    else:
        packed_s, packed_2_s = (share * measured.ffn_s(Residency.PACKED, rows) for rows in (1, 2))
    return TensorCosts(
        e_read_s=measured.channel_s(e_bytes),
        sm_read_s=measured.channel_s(sm_bytes),
        recover_s=recover_s,
        chunk_count=chunk_count,
        full_s=measured.copy_s(nbytes) + full_s,
        packed_s=measured.copy_s(e_bytes + sm_bytes) + packed_s,
        full_row_s=full_2_s - full_s,
        packed_row_s=packed_2_s - packed_s,
    )
