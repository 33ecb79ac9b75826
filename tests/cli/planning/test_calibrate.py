"""`zipmoe calibrate` and `zipmoe doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.calibration.measurement_time import own_cache
from tests.cli.run import zipmoe
from tests.services.tiny_store import TinyStore, make_store
from zipmoe.cli.watching import doctor

__all__ = ["own_cache"]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def store(tmp_path: Path) -> TinyStore:
    return make_store(tmp_path, shapes=((64, 40), (40, 32)))


class TestCalibrate:
    def test_json_has_the_figures_and_where_they_are_kept(self, store: TinyStore) -> None:
        found = zipmoe("calibrate", store.path, "--device", "cpu", "--json").json
        assert Path(found["path"]).is_file()
        assert found["disk"]["points"][0]["bytes_per_s"] > 0
        speed = found["stores"][store.manifest.digest]
        assert speed["codec"] == "zstd"
        assert speed["models"]["cpu"]["full_ffn"]["first_s"] > 0
        assert speed["models"]["cpu"]["packed_ffn"] is None

    def test_tables_show_disk_recovery_and_computing(self, store: TinyStore) -> None:
        shown = zipmoe("calibrate", store.path, "--quick", "--device", "cpu").stdout
        for words in ("random reads, GB/s", "recovery", "FFN, FULL", "zstd", "kept in"):
            assert words in shown

    def test_a_store_that_is_none_is_refused(self, tmp_path: Path) -> None:
        ran = zipmoe("calibrate", tmp_path, "--json")
        assert (ran.exit_code, ran.error["class"]) == (2, "NotFound")


class TestDoctor:
    def test_every_line_has_a_verdict(self, store: TinyStore) -> None:
        ran = zipmoe("doctor", store.path, "--json")
        findings = ran.json["findings"]
        assert ran.json["fit"] == all(finding["verdict"] != "fail" for finding in findings)
        assert ran.exit_code == (0 if ran.json["fit"] else 1)
        names = {finding["name"] for finding in findings}
        assert {"processor", "kernels", "kernel", "direct reads", "disk bandwidth", "memory", "cuda"} <= names
        assert all(finding["advice"] for finding in findings if finding["verdict"] != "ok")

    def test_what_does_not_work_makes_it_exit_with_1(self, store: TinyStore, monkeypatch: pytest.MonkeyPatch) -> None:
        from zipmoe.doctor.finding import fail, ok

        monkeypatch.setattr(
            doctor, "_examine", lambda path, runtime_dir: [ok("a", "fine"), fail("b", "gone", "get it")]
        )
        ran = zipmoe("doctor", store.path)
        assert ran.exit_code == 1
        assert [line.split() for line in ran.stdout.splitlines()] == [
            ["ok", "a", "fine"],
            ["fail", "b", "gone"],
            ["get", "it"],
        ]

    def test_a_path_that_does_not_exist_is_refused(self, tmp_path: Path) -> None:
        assert zipmoe("doctor", tmp_path / "none", "--json").error["class"] == "NotFound"
