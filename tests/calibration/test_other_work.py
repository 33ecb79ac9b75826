from __future__ import annotations

import os
from pathlib import Path

import pytest

from zipmoe.calibration.other_work import OtherWork

FIELDS = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest"]


def write_stat(path: Path, **ticks: int) -> None:
    """Only the first core that this process may use has done anything; others' cores do not count."""
    core = min(os.sched_getaffinity(0))
    values = " ".join(str(ticks.get(name, 0)) for name in FIELDS)
    path.write_text(f"cpu  9 9 9 9 9 9 9 9 9\ncpu{core} {values}\ncpu9999 {10**9} 0 0 0 0 0 0 0 0\nintr 5\n")


@pytest.mark.parametrize(
    ("later", "busy_s"),
    [
        ({"user": 30, "system": 10}, 0.4),
        ({"steal": 20, "softirq": 20}, 0.4),
        ({"idle": 900, "iowait": 90}, 0.0),
        ({"user": 10**6}, 1e4),
    ],
)
def test_the_share_is_what_others_used_of_our_cores(
    later: dict[str, int], busy_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = tmp_path / "stat"
    write_stat(stat)
    clock = iter([0.0, 2.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    own = iter([5.0, 5.1])
    monkeypatch.setattr("time.process_time", lambda: next(own))
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    watched = OtherWork(stat)
    write_stat(stat, **later)
    cores = len(os.sched_getaffinity(0))
    assert watched.ratio() == pytest.approx(min(1.0, max(0.0, (busy_s - 0.1) / (2.0 * cores))))


def test_where_the_kernel_does_not_say_nobody_is_blamed(tmp_path: Path) -> None:
    assert OtherWork(tmp_path / "none").ratio() == 0.0


def test_it_works_here() -> None:
    assert 0.0 <= OtherWork().ratio() <= 1.0
