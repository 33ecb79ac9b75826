"""Measured speed of a model on a device."""

from __future__ import annotations

from dataclasses import dataclass

from zipmoe.planning.costs import RowCost


@dataclass(frozen=True)
class CompressedDense:
    """The dense weights of a model, compressed in memory.

    Attributes:
        form: name of the in-memory form; empty if no matrix has one.
        saved_bytes: bytes that the dense weights take less than bf16.
        dense: as `ModelSpeed.dense`, with the compressed matrices.
        left: why matrices stay bf16; empty if none does.
    """

    form: str
    saved_bytes: int
    dense: RowCost
    left: str = ""


@dataclass(frozen=True)
class FormSpeed:
    """Experts that are recovered to an in-memory form.

    Attributes:
        form: name of the form.
        ffn: FFN of one expert from that form.
    """

    form: str
    ffn: RowCost


@dataclass(frozen=True)
class ModelSpeed:
    """Costs of a model's parts on a device.

    Attributes:
        full_ffn: FFN of one expert from the recovered tensor.
        packed_ffn: FFN of one expert straight from the chunks; None where there is no kernel for packed experts.
        dense: one MoE layer's share of a step without routed experts; None if the model could not be built.
        why_no_dense: reason why the model could not be built; empty if the model was built.
        copy_bytes_per_s: bandwidth of copies from host memory to the device; None on the CPU.
        compressed: the dense part with compressed weights; None on a GPU, and if the model could not be built.
        form_ffn: FFN of one expert from the machine's in-memory form; None if it has none for these experts.
    """

    full_ffn: RowCost
    packed_ffn: RowCost | None
    dense: RowCost | None
    why_no_dense: str = ""
    copy_bytes_per_s: float | None = None
    compressed: CompressedDense | None = None
    form_ffn: FormSpeed | None = None

    def full(self, tensor_form: str) -> RowCost:
        """Returns the cost of an FFN from a recovered expert in a form; that of bf16 if the form was not measured."""
        return self.form_ffn.ffn if self.form_ffn is not None and self.form_ffn.form == tensor_form else self.full_ffn
