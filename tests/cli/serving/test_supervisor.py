"""Services live and end together: in order, in time, and never without being reaped."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zipmoe.cli.serving.service_process import ServiceSpec
from zipmoe.cli.serving.supervisor import Supervisor
from zipmoe.errors import DeadlineExceeded, InvalidRequest, Unavailable

NAMES = ("first", "second", "third")
START_S = 60.0


def spec(directory: Path, name: str, behaviour: str = "serve") -> ServiceSpec:
    return ServiceSpec(name, "tests.cli.service_script", (str(directory), name, behaviour), directory / f"{name}.sock")


def supervise(directory: Path, drain_timeout_s: float = 60.0, **behaviours: str) -> Supervisor:
    specs = [spec(directory, name, behaviours.get(name, "serve")) for name in NAMES]
    return Supervisor(specs, directory, drain_timeout_s=drain_timeout_s)


def serves(spec: ServiceSpec) -> bool:
    return spec.socket is not None and spec.socket.exists()


def wait(supervisor: Supervisor, timeout_s: float = START_S) -> list[str]:
    """Waits until all serve; their names in the order in which that was noticed."""
    noticed: list[str] = []
    assert supervisor.wait_until_serving(serves, lambda process: noticed.append(process.spec.name), timeout_s)
    return noticed


def events(directory: Path) -> list[str]:
    path = directory / "events"
    return path.read_text().splitlines() if path.exists() else []


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_services_are_noticed_in_starting_order_and_drained_in_reverse(tmp_path: Path) -> None:
    with supervise(tmp_path) as supervisor:
        supervisor.start()
        assert wait(supervisor) == list(NAMES)
    assert events(tmp_path) == ["third terminated", "second terminated", "first terminated"]
    assert [process.exit_code for process in supervisor.processes] == [0, 0, 0]
    assert all(is_gone(process.pid) for process in supervisor.processes)


def test_every_service_has_a_session_and_a_log_of_its_own(tmp_path: Path) -> None:
    with supervise(tmp_path) as supervisor:
        supervisor.start()
        wait(supervisor)
        for process in supervisor.processes:
            assert os.getsid(process.pid) == process.pid
            assert process.last_lines() == [f"{process.spec.name} has pid {process.pid}"]


def test_a_service_that_dies_is_reported_with_its_last_words_and_takes_the_others_down(tmp_path: Path) -> None:
    with supervise(tmp_path, second="die") as supervisor:
        supervisor.start()
        wait(supervisor)
        (tmp_path / "second.die").write_bytes(b"now")
        with pytest.raises(Unavailable) as caught:
            supervisor.run()
    assert caught.value.message.startswith("second ended with exit code 3; the end of its log:\n    second has pid")
    assert caught.value.message.endswith("    something terrible")
    assert str(tmp_path / "second.log") in caught.value.diagnostics()
    assert events(tmp_path) == ["third terminated", "first terminated"]
    assert all(is_gone(process.pid) for process in supervisor.processes)


def test_a_service_that_is_killed_is_reported_as_killed(tmp_path: Path) -> None:
    with supervise(tmp_path) as supervisor:
        supervisor.start()
        wait(supervisor)
        os.kill(supervisor.processes[2].pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="third was killed by SIGKILL"):
            supervisor.run()


def test_a_service_that_refuses_its_arguments_is_a_usage_error(tmp_path: Path) -> None:
    with supervise(tmp_path, second="refuse") as supervisor:
        supervisor.start()
        with pytest.raises(InvalidRequest) as caught:
            wait(supervisor)
    assert caught.value.message == (
        "second refused to start; the end of its log:\n    error: --slots is 0, want at least 1"
    )


def test_a_service_that_never_serves_is_given_up(tmp_path: Path) -> None:
    with supervise(tmp_path, third="silent") as supervisor:
        supervisor.start()
        with pytest.raises(DeadlineExceeded, match="third does not serve after 0 s"):
            supervisor.wait_until_serving(lambda spec: spec.name != "third", lambda process: None, 0.0)
    assert all(is_gone(process.pid) for process in supervisor.processes)


def test_a_stop_request_ends_the_wait_for_service(tmp_path: Path) -> None:
    with supervise(tmp_path, first="silent") as supervisor:
        supervisor.start()
        supervisor.request_stop()
        assert not supervisor.wait_until_serving(serves, lambda process: None, START_S)


def test_a_stop_request_ends_the_run(tmp_path: Path) -> None:
    with supervise(tmp_path) as supervisor:
        supervisor.start()
        wait(supervisor)
        supervisor.request_stop()
        supervisor.run()
    assert len(events(tmp_path)) == 3


def test_a_second_stop_request_kills_what_still_drains(tmp_path: Path) -> None:
    with supervise(tmp_path, third="stubborn") as supervisor:
        supervisor.start()
        wait(supervisor)
        supervisor.request_stop()
        supervisor.run()
        supervisor.request_stop()
    assert [process.exit_code for process in supervisor.processes] == [-signal.SIGKILL] * 3


def test_a_service_that_does_not_drain_in_time_is_killed(tmp_path: Path) -> None:
    with supervise(tmp_path, drain_timeout_s=0.2, third="stubborn") as supervisor:
        supervisor.start()
        wait(supervisor)
    assert events(tmp_path)[0] == "third terminated"
    assert supervisor.processes[2].exit_code == -signal.SIGKILL
    assert all(is_gone(process.pid) for process in supervisor.processes)


def test_stopping_twice_is_stopping_once(tmp_path: Path) -> None:
    with supervise(tmp_path) as supervisor:
        supervisor.start()
        wait(supervisor)
        supervisor.stop()
    assert len(events(tmp_path)) == 3


def test_a_service_is_killed_with_its_whole_session(tmp_path: Path) -> None:
    with supervise(tmp_path, first="fork") as supervisor:
        supervisor.start()
        wait(supervisor)
        (child,) = (int(line.split()[-1]) for line in events(tmp_path))
        handle = os.pidfd_open(child)
        first = supervisor.processes[0]
        first.kill()
        first.join(START_S)
        assert select.select([handle], [], [], START_S)[0], "a child outlived its service"
        os.close(handle)
        first.kill()  # of one that is gone: nothing


SUPERVISOR = """
import sys
from pathlib import Path
from tests.cli.serving.test_supervisor import supervise, wait
with supervise(Path(sys.argv[1]), third="stubborn") as supervisor:
    supervisor.start()
    wait(supervisor)
    print(*(process.pid for process in supervisor.processes), flush=True)
    supervisor.run()
"""


def test_no_service_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path)], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    pids = [int(pid) for pid in supervisor.stdout.readline().split()]
    assert len(pids) == 3
    handles = [os.pidfd_open(pid) for pid in pids]
    supervisor.kill()
    supervisor.communicate()
    for handle in handles:
        signalled, _, _ = select.select([handle], [], [], START_S)
        assert signalled, "a service outlived its supervisor"
        os.close(handle)
