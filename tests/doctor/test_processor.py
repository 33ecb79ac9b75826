from __future__ import annotations

from pathlib import Path

import pytest

import zipmoe.kernels
from zipmoe.doctor import processor
from zipmoe.doctor.finding import Verdict
from zipmoe.doctor.processor import check_kernels, check_libraries, check_operating_system, check_processor
from zipmoe.model import torch_version


@pytest.mark.parametrize(
    ("release", "verdict"),
    [
        ("6.18.44-fc", Verdict.OK),
        ("5.14.0", Verdict.OK),
        ("5.10.104-tegra", Verdict.WARN),
        ("3.10.0-1160", Verdict.FAIL),
    ],
)
def test_old_kernels_are_warned_of_or_refused(release: str, verdict: Verdict) -> None:
    assert check_operating_system(release).verdict is verdict


def test_the_features_that_matter_are_named(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 fma something\n")
    first, *_ = check_processor(cpuinfo)
    assert first.verdict is Verdict.OK and first.found.endswith("features: avx2 fma")
    cpuinfo.write_text("Features\t: fp asimd\n")
    assert next(iter(check_processor(cpuinfo))).found.endswith("features: asimd")


def test_the_fastest_kernels_are_fine_and_slower_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_kernels().verdict is Verdict.OK
    for forced, advice in (("scalar", "AVX2 or NEON"), ("second", "ZIPMOE_KERNELS")):
        monkeypatch.setattr(zipmoe.kernels.backends, "backends", lambda: ["first", "second", "scalar"])
        monkeypatch.setattr(zipmoe.kernels.backends, "backend", lambda name=forced: name)
        finding = check_kernels()
        assert finding.verdict is Verdict.WARN and advice in finding.advice


def test_missing_libraries_and_other_minor_versions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {finding.verdict for finding in check_libraries()} == {Verdict.OK}
    monkeypatch.setattr(processor, "TRANSFORMERS_MINOR", "4.0")
    assert [finding.verdict for finding in check_libraries()] == [Verdict.OK, Verdict.OK, Verdict.WARN]

    monkeypatch.setattr(torch_version, "version", lambda name: "2.6.0a0+df5bbc09d1.nv24.12")
    assert [finding.verdict for finding in check_libraries()] == [Verdict.OK, Verdict.FAIL, Verdict.WARN]

    def missing(name: str) -> str:
        raise processor.PackageNotFoundError(name)

    monkeypatch.setattr(processor, "version", missing)
    assert [finding.verdict for finding in check_libraries()] == [Verdict.OK, Verdict.FAIL, Verdict.FAIL]
