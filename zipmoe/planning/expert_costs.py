"""What one expert costs on this machine: the measured costs, applied to the bytes of its record."""

from __future__ import annotations

from typing import Protocol

from zipmoe.residency.state import Residency
from zipmoe.residency.tasks import ExpertCosts, TensorCosts
from zipmoe.store.format.layout import ExpertRecord


class MeasuredCosts(Protocol):
    """What has to be known of a machine; `zipmoe.planning.costs.Costs` is it."""

    @property
    def packed_ffn(self) -> object | None:
        """None where experts cannot be computed straight from their chunks."""

    def channel_s(self, nbytes: int) -> float:
        """Seconds that a read occupies the channel."""

    def recover_s(self, nbytes: int) -> float:
        """Seconds that one worker takes for so many bytes of bf16."""

    def copy_s(self, nbytes: int) -> float:
        """Seconds to bring bytes to the device that computes."""

    def ffn_s(self, form: Residency, rows: int) -> float:
        """Seconds of one expert's products on some rows."""


def expert_costs(measured: MeasuredCosts, record: ExpertRecord) -> ExpertCosts:
    """Computes what each tensor of an expert costs.

    An expert's products are divided over its tensors by their weights. Where experts cannot be computed straight from
    their chunks, that is taken to be a recovery on the model's own thread and a product.

    Args:
        measured: costs of this machine.
        record: of one expert; experts of a layer differ by a few bytes only.
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
