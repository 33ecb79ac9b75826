"""The form of dense weights that a plan takes."""

from __future__ import annotations

import pytest

from zipmoe.calibration.model_speed import CompressedDense
from zipmoe.cli.planning.dense_choice import BF16_UNMEASURED, DenseChoice, choose_dense
from zipmoe.planning.costs import RowCost

STORE_BYTES, SAVED_BYTES = 1000, 250
MEASURED = CompressedDense("nibble", SAVED_BYTES, RowCost(1e-3, 1e-4))
NO_FORM = CompressedDense("", 0, RowCost(1e-3, 1e-4), "3 x no form has torch's bits for one row")


def chosen(mode: str, compressed_s: float | None = 1.0, bf16_s: float | None = 1.0) -> DenseChoice:
    def tpot_s(compressed: bool, dense_bytes: int) -> float | None:
        assert dense_bytes == STORE_BYTES - SAVED_BYTES * compressed
        return compressed_s if compressed else bf16_s

    return choose_dense(mode, STORE_BYTES, MEASURED, tpot_s)  # type: ignore[arg-type]


def test_auto_takes_compressed_weights_unless_they_are_slower() -> None:
    for compressed_s, form in ((0.9, "nibble"), (1.0, "nibble"), (1.1, "bf16")):
        assert chosen("auto", compressed_s).form == form
    assert chosen("auto").dense_bytes == STORE_BYTES - SAVED_BYTES
    assert chosen("auto", 1.1).dense_bytes is None


def test_auto_takes_the_form_that_fits() -> None:
    assert chosen("auto", 2.0, None) == DenseChoice("nibble", STORE_BYTES - SAVED_BYTES, "bf16 does not fit")
    assert chosen("auto", None, 2.0).form == "bf16"


@pytest.mark.parametrize(("mode", "form"), [("compressed", "nibble"), ("bf16", "bf16")])
def test_the_setting_counts_whatever_is_faster(mode: str, form: str) -> None:
    for compressed_s in (0.5, 2.0):
        found = chosen(mode, compressed_s)
        assert (found.form, found.mode, found.reason) == (form, mode, f"the setting --dense {mode}")


@pytest.mark.parametrize("mode", ["auto", "compressed"])
def test_without_a_form_weights_stay_bf16_and_the_reason_is_told(mode: str) -> None:
    refused = choose_dense(mode, STORE_BYTES, NO_FORM, lambda *_: 1.0)  # type: ignore[arg-type]
    assert (refused.form, refused.dense_bytes) == ("bf16", None)
    assert "no form has torch's bits" in refused.reason
    assert choose_dense(mode, STORE_BYTES, None, lambda *_: 1.0) == BF16_UNMEASURED  # type: ignore[arg-type]
