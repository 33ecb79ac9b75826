from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from zipmoe.errors import UnsupportedModel
from zipmoe.model import torch_version
from zipmoe.model.torch_version import check_torch


def installed(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(torch_version, "version", lambda name: found)


@pytest.mark.parametrize("found", ["2.6.0", "2.6.0+cpu", "2.13.0+cpu", "2.7.0a0+79aa17489c.nv25.04", "3.0"])
def test_a_torch_that_transformers_can_use_passes(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, found)
    check_torch()


@pytest.mark.parametrize("found", ["2.5.1", "2.6.0a0+df5bbc09d1.nv24.12", "2.6.0rc1", "1.13.1"])
def test_an_older_torch_is_one_clear_line(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, found)
    with pytest.raises(UnsupportedModel, match=r"is too old: transformers 5\.23 needs 2\.6 or newer") as refusal:
        check_torch()
    assert found in refusal.value.message
    assert "2.6" in refusal.value.diagnostics()


def test_no_torch_is_one_clear_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(torch_version, "version", missing)
    with pytest.raises(UnsupportedModel, match="torch is not installed"):
        check_torch()
