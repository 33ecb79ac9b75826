from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.model.known_orders import kernels_have_torchs_bits
from zipmoe.doctor.finding import Verdict
from zipmoe.doctor.linears import check_linears
from zipmoe.model.linear.linear_order import OrderTable

ONEDNN = "ONEDNN_MAX_CPU_ISA"


@pytest.fixture
def amx(tmp_path: Path) -> Path:
    """The description of a processor with AMX."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n")
    return cpuinfo


def test_this_machine_is_warned_of_exactly_if_torch_has_to_compute() -> None:
    finding = check_linears()
    assert finding.name == "linears"
    assert (finding.verdict is Verdict.OK) == kernels_have_torchs_bits()
    assert (finding.verdict is Verdict.OK) == ("dense weights" in finding.found)


def test_an_unknown_order_is_warned_of_with_a_setting_that_avoids_amx(
    amx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ONEDNN, raising=False)
    finding = check_linears(OrderTable(orders=()), amx)
    assert finding.verdict is Verdict.WARN
    assert "torch computes all linears" in finding.found and "answers stay exact" in finding.found
    assert f"{ONEDNN}=AVX512_CORE_BF16" in finding.advice and "stock too" in finding.advice


def test_no_setting_is_advised_where_it_would_not_help(amx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ONEDNN, raising=False)
    elsewhere = check_linears(OrderTable(orders=()), Path("/nonexistent/cpuinfo"))
    monkeypatch.setenv(ONEDNN, "AVX512_CORE_BF16")
    already = check_linears(OrderTable(orders=()), amx)
    assert elsewhere == already
    assert already.verdict is Verdict.WARN and ONEDNN not in already.advice


def test_a_torch_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zipmoe.model.linear.native_linear", None)
    finding = check_linears()
    assert finding.verdict is Verdict.WARN and finding.found.startswith("not tested: ")
