"""Runs one service as a child process with a log file."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zipmoe.process.python_command import python_command

_TAIL_BYTES, _TAIL_LINES = 64 << 10, 12


@dataclass(frozen=True)
class ServiceSpec:
    """Command line and addresses of a service.

    Attributes:
        name: name for people, for example `expert-store`.
        module: the Python module to run, for example `zipmoe.services.expert_store`.
        arguments: command line of the module.
        socket: the UNIX socket that the service serves on; None for the gateway, which has none.
        endpoints: addresses of the service, for people to read.
        metrics_port: TCP port of the metrics.
        health_url: base URL of the health check of a service without a socket.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    socket: Path | None
    endpoints: tuple[str, ...] = ()
    metrics_port: int = 0
    health_url: str = ""


class ServiceProcess:
    """A started service in its own session, so that a terminal's Ctrl-C reaches only the supervisor.

    The kernel kills the service when the thread that created this object ends. Thread: create it in the main thread.
    """

    def __init__(self, spec: ServiceSpec, log_path: Path, on_exit: Callable[[ServiceProcess], None]) -> None:
        """Starts the service.

        Args:
            spec: the service to start.
            log_path: file for stdout and stderr of the service; emptied first.
            on_exit: called once, in a separate thread, when the process has ended and been reaped.
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
        """Exit code; negative for a signal, None while the process runs."""
        return self._popen.returncode

    @property
    def ending(self) -> str:
        """Description of the end of the process, in words."""
        code = self._popen.returncode
        if code is None:
            return "still runs"
        if code >= 0:
            return f"ended with exit code {code}"
        return f"was killed by {signal.Signals(-code).name}"

    def terminate(self) -> None:
        """Asks the service to drain and end. A second call asks for an immediate end."""
        self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the service and the other processes of its process group, if the service still runs."""
        if self._popen.poll() is None:
            try:
                os.killpg(self._popen.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def join(self, timeout_s: float) -> None:
        """Waits at most `timeout_s` until the process has ended and been reaped."""
        self._reaper.join(timeout_s)

    def last_lines(self) -> list[str]:
        """Reads the last lines of the log, at most 12."""
        with self.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - _TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
