from __future__ import annotations

import pytest

from zipmoe.doctor import gpu
from zipmoe.doctor.finding import Verdict
from zipmoe.doctor.gpu import check_gpu


def test_no_hardware_is_fine_and_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_NODES", ("/nonexistent/node",))
    monkeypatch.setattr("torch.cuda.is_available", lambda: pytest.fail("torch was asked"))
    (finding,) = check_gpu()
    assert finding.verdict is Verdict.OK and "no device" in finding.found


def test_hardware_that_torch_cannot_use_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_NODES", ("/dev/null",))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (finding,) = check_gpu()
    assert finding.verdict is Verdict.WARN


@pytest.mark.gpu
def test_a_gpu_is_named_and_registration_tried() -> None:
    assert [finding.name for finding in check_gpu()] == ["cuda", "host memory for cuda"]
