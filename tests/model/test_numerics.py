from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from zipmoe.model import numerics
from zipmoe.model.numerics import NumericsReport, check_row_invariance


def run(code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_environment_is_set_before_torch_and_the_module_does_not_import_torch() -> None:
    code = (
        "import os, sys; from zipmoe.model.numerics import prepare_environment; assert 'torch' not in sys.modules; "
        "print(prepare_environment(), os.environ['MKL_CBWR'], prepare_environment())"
    )
    assert run(code) == "AVX2,STRICT AVX2,STRICT AVX2,STRICT"


def test_an_operators_own_setting_is_kept() -> None:
    code = "from zipmoe.model.numerics import prepare_environment; print(prepare_environment())"
    assert run(code, MKL_CBWR="COMPATIBLE") == "COMPATIBLE"


def test_setting_it_after_torch_is_an_error_not_a_silent_difference() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from zipmoe.model.numerics import prepare_environment\n"
        "try: prepare_environment()\nexcept Exception as error: print(type(error).__name__, error)"
    )
    assert run(code) == "InternalError torch was imported before MKL_CBWR was set"


def test_fp32_linears_do_not_depend_on_the_address_of_the_weights() -> None:
    weight, rows = torch.randn(64, 96), torch.randn(5, 96)
    expected = torch.nn.functional.linear(rows, weight)
    storage = torch.empty(64 * 96 + 64)
    for offset in range(0, 32, 3):
        moved = storage[offset : offset + 64 * 96].view(64, 96).copy_(weight)
        assert torch.equal(torch.nn.functional.linear(rows, moved), expected)


def test_the_report_counts_what_it_compared() -> None:
    report = check_row_invariance(shapes=((32, 16), (8, 24)), row_counts=(2, 5))
    assert report.outputs_checked == (2 + 5) * (32 + 8)
    assert report.row_counts == (2, 5)
    assert report.thread_count == torch.get_num_threads()
    assert report.row_invariant == (report.outputs_differing == 0)
    assert report.mkl_cbwr == os.environ["MKL_CBWR"]
    assert report == check_row_invariance(shapes=((32, 16), (8, 24)), row_counts=(2, 5))


def test_a_machine_whose_rows_depend_on_each_other_is_reported_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.functional.linear

    def off_by_one_in_company(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        output = linear(rows, weight)
        if len(rows) > 1:
            output[-1, 0] += 1
        return output

    monkeypatch.setattr(torch.nn.functional, "linear", off_by_one_in_company)
    report = check_row_invariance(shapes=((32, 16),), row_counts=(2, 4, 8))
    assert not report.row_invariant
    assert report.outputs_differing == 3
    assert report.worst_relative_difference > 0
    assert "not row-invariant: 3 of 448 outputs differ between 1 row and 2..8 rows" in str(report)


def test_the_verdict_is_the_first_thing_said() -> None:
    report = NumericsReport("AVX2,STRICT", 2, (2, 64), 100, 0, 0.0)
    assert str(report).startswith("bf16 linears are row-invariant: 0 of 100 outputs differ")
    assert numerics.MKL_SETTING == "AVX2,STRICT"
