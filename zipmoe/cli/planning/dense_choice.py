"""The choice of the form of dense weights in memory: bf16, or compressed by the calibration's figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zipmoe.calibration.model_speed import CompressedDense
    from zipmoe.process.budgeted import DenseMode


BF16 = "bf16"


@dataclass(frozen=True)
class DenseChoice:
    """The chosen form of dense weights.

    Attributes:
        form: name of the in-memory form; `bf16` if nothing is compressed.
        dense_bytes: bytes of all dense weights in memory; None for those of the store.
        reason: why.
    """

    form: str
    dense_bytes: int | None
    reason: str

    @property
    def mode(self) -> DenseMode:
        """The setting with which the router does as chosen."""
        return "bf16" if self.form == BF16 else "compressed"


BF16_UNMEASURED = DenseChoice(BF16, None, "not measured")


def choose_dense(
    mode: DenseMode,
    bf16_bytes: int,
    option: CompressedDense | None,
    tpot_s: Callable[[bool, int], float | None],
) -> DenseChoice:
    """Chooses the form of the dense weights.

    Args:
        mode: the operator's setting.
        bf16_bytes: bytes of the dense weights of the store.
        option: the compressed ones; None if they have not been measured.
        tpot_s: forecasts the time per token, given whether they are compressed and their bytes; None if the plan is
            infeasible with them.
    """
    if mode == "bf16":
        return DenseChoice(BF16, None, "the setting --dense bf16")
    if option is None or not option.form:
        return BF16_UNMEASURED if option is None else DenseChoice(BF16, None, f"no form suits: {option.left}")
    compressed_bytes = bf16_bytes - option.saved_bytes
    if mode == "compressed":
        return DenseChoice(option.form, compressed_bytes, "the setting --dense compressed")
    one, other = tpot_s(True, compressed_bytes), tpot_s(False, bf16_bytes)
    if other is None:
        return DenseChoice(option.form, compressed_bytes, "bf16 does not fit")
    if one is None:
        return DenseChoice(BF16, None, "compressed ones do not fit")
    figures = f"forecast {one * 1e3:.2f} ms a token compressed, {other * 1e3:.2f} ms with bf16"
    return DenseChoice(option.form, compressed_bytes, figures) if one <= other else DenseChoice(BF16, None, figures)
