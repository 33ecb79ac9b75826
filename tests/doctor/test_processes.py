from __future__ import annotations

from pathlib import Path

import pytest

from zipmoe.doctor import processes
from zipmoe.doctor.finding import Verdict
from zipmoe.doctor.processes import check_open_files, check_sockets


def test_socket_paths_have_to_fit(tmp_path: Path) -> None:
    short = Path("/tmp") / tmp_path.name
    try:
        assert check_sockets(short).verdict is Verdict.OK
    finally:
        short.rmdir()
    finding = check_sockets(tmp_path / ("x" * 100))
    assert finding.verdict is Verdict.FAIL and "107 bytes" in finding.advice


def test_a_run_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    finding = check_sockets(shared)
    assert finding.verdict is Verdict.FAIL and "chmod 700" in finding.advice


@pytest.mark.parametrize(
    ("soft", "files", "verdict"),
    [(4096, 48, Verdict.OK), (512, 48, Verdict.WARN), (512, 400, Verdict.FAIL), (100, 0, Verdict.FAIL)],
)
def test_every_expert_file_has_to_be_opened(
    soft: int, files: int, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.resource, "getrlimit", lambda which: (soft, 4096))
    assert check_open_files(files).verdict is verdict
