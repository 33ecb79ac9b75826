"""What computing gave on one device."""

from __future__ import annotations

from dataclasses import dataclass

from zipmoe.planning.costs import RowCost


@dataclass(frozen=True)
class ModelSpeed:
    """Seconds of a model's parts.

    Attributes:
        full_ffn: FFN of one expert from its recovered tensor.
        packed_ffn: FFN of one expert straight from its chunks; None where there is no kernel for it.
        dense: one MoE layer's share of a step without its routed experts; None if the model could not be built.
        why_no_dense: why not; empty if it could.
        copy_bytes_per_s: from host memory to the device; None on the CPU.
    """

    full_ffn: RowCost
    packed_ffn: RowCost | None
    dense: RowCost | None
    why_no_dense: str = ""
    copy_bytes_per_s: float | None = None
