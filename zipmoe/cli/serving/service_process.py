"""One service as a child process with a log file."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zipmoe.cli.python_command import python_command

_TAIL_BYTES = 64 << 10


@dataclass(frozen=True)
class ServiceSpec:
    """How to start one service, and how to tell that it serves.

    Attributes:
        name: what people call it, for example `expert-store`.
        module: the Python module to run, for example `zipmoe.services.expert_store`.
        arguments: its command line.
        socket: the UNIX socket that it serves on; None for one that has none.
        endpoints: where it can be reached, for people to read.
        metrics_port: where it shows its metrics.
        health_url: where one without a socket says over HTTP that it serves.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    socket: Path | None
    endpoints: tuple[str, ...] = ()
    metrics_port: int = 0
    health_url: str = ""


class ServiceProcess:
    """A started service: its own session, so that a terminal's Ctrl-C reaches only the supervisor.

    It is killed by the kernel when the thread that made this object's process goes; make it in the main thread.
    """

    def __init__(self, spec: ServiceSpec, log_path: Path, on_exit: Callable[[ServiceProcess], None]) -> None:
        """Starts the service.

        Args:
            spec: what to start.
            log_path: file that gets its stdout and stderr; emptied first.
            on_exit: called once, in a thread of its own, when the process has ended and been reaped.
        """
        self.spec = spec
        self.log_path = log_path
        command = python_command("-m", "zipmoe.cli.serving.child", str(os.getpid()), spec.module, *spec.arguments)
        with log_path.open("wb") as log:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._on_exit = on_exit
        self._reaper = threading.Thread(target=self._reap, name=f"reap-{spec.name}", daemon=True)
        self._reaper.start()

    def _reap(self) -> None:
        self._popen.wait()
        self._on_exit(self)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for a signal, None while it runs."""
        return self._popen.returncode

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = self._popen.returncode
        if code is None:
            return "still runs"
        if code >= 0:
            return f"ended with exit code {code}"
        return f"was killed by {signal.Signals(-code).name}"

    def terminate(self) -> None:
        """Asks the service to drain and end; a second call asks it to end at once."""
        self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the service and whatever it has started."""
        if self._popen.poll() is None:
            try:
                os.killpg(self._popen.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def join(self, timeout_s: float) -> None:
        """Waits until the process has ended and been reaped."""
        self._reaper.join(timeout_s)

    def last_lines(self, count: int = 12) -> list[str]:
        """Reads the end of the log: at most `count` lines."""
        with self.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - _TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-count:]
