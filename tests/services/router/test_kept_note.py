"""A finding holds for the store, the settings, the machine and the versions with which it was made."""

from __future__ import annotations

from pathlib import Path

import pytest

from zipmoe.services.router.kept_note import KeptNote


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ZIPMOE_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_a_note_is_read_again() -> None:
    note = KeptNote("kind", "digest", 2, "auto")
    assert note.read() is None
    note.keep("equal")
    assert KeptNote("kind", "digest", 2, "auto").read() == "equal"


@pytest.mark.parametrize("other", [("other", "digest", 2), ("kind", "another", 2), ("kind", "digest", 1)])
def test_another_store_or_setting_has_no_note(other: tuple[str, str, int]) -> None:
    KeptNote("kind", "digest", 2).keep("equal")
    assert KeptNote(*other).read() is None


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_CBWR"])
def test_another_order_of_sums_has_no_note(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    KeptNote("kind", "digest").keep("equal")
    monkeypatch.setenv(variable, "another")
    assert KeptNote("kind", "digest").read() is None


def test_a_damaged_or_unwritable_note_is_none(own_cache: Path) -> None:
    note = KeptNote("kind", "digest")
    note.keep("equal")
    (file,) = (own_cache / "kind").iterdir()
    file.write_bytes(b"\xff")
    assert note.read() is None
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("no folder")
    note.keep("equal")
    assert note.read() is None
