"""Runs several services together: starts in order, drains in reverse order, and stops all if one ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from zipmoe.cli.serving.service_process import ServiceProcess, ServiceSpec
from zipmoe.cli.serving.signal_queue import SignalQueue
from zipmoe.errors import DeadlineExceeded, InvalidRequest, Unavailable

if TYPE_CHECKING:
    from typing import Self

POLL_S: Final = 0.1
"""Seconds between two health checks of a starting service."""

_KILL_TIMEOUT_S: Final = 10.0
_CHECK_TIMEOUT_S: Final = 1.0
_STOP: Final = "stop"


class Supervisor:
    """Owns the processes of several services.

    The end of the `with` block drains the services that still run. No service outlives the supervisor: a service that
    does not end in time is killed, and if the supervisor itself is killed, the kernel kills the services.

    Thread: main. Only `request_stop` may be called from a signal handler.
    """

    def __init__(self, specs: Sequence[ServiceSpec], log_directory: Path, *, drain_timeout_s: float = 30.0) -> None:
        """Prepares the services without starting any.

        Args:
            specs: the services in starting order.
            log_directory: existing directory for a file `NAME.log` of each service.
            drain_timeout_s: seconds that each service may take to end before all services are killed.
        """
        self.processes: list[ServiceProcess] = []
        self._specs = tuple(specs)
        self._log_directory = log_directory
        self._drain_timeout_s = drain_timeout_s

    def __enter__(self) -> Self:
        self._events: SignalQueue[ServiceProcess | str] = SignalQueue()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._events.close()

    def start(self) -> None:
        """Starts all services in order, without waiting for any.

        Each service waits for its predecessor by itself. All services have to be started before this process creates
        its first gRPC channel, because gRPC does not support a later fork.
        """
        for spec in self._specs:
            self.processes.append(ServiceProcess(spec, self._log_directory / f"{spec.name}.log", self._events.put))

    def request_stop(self) -> None:
        """Ends the current wait. During `stop`, ends the drain at once."""
        self._events.put(_STOP)

    def wait_until_serving(
        self, probe: Callable[[ServiceSpec], bool], on_serving: Callable[[ServiceProcess], None], timeout_s: float
    ) -> bool:
        """Waits in order until each service serves.

        Args:
            probe: returns whether a service serves; must not block for long.
            on_serving: called when a service begins to serve.
            timeout_s: longest wait for all services together.

        Returns:
            True when all services serve; False if a stop was requested first.

        Raises:
            InvalidRequest: a service refused its arguments (exit code 2).
            Unavailable: a service ended.
            DeadlineExceeded: a service does not serve in time.
        """
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            while not probe(process.spec):
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(
                        f"{process.spec.name} does not serve after {timeout_s:.0f} s{_log_of(process)}",
                        next_step=f"look at its log, {process.log_path}, or allow more time with --start-timeout",
                    )
                if not self._wait(POLL_S, starting=True):
                    return False
            on_serving(process)
        return True

    def run(self) -> None:
        """Waits until a stop is requested.

        Raises:
            Unavailable: a service ended by itself.
        """
        while self._wait(None, starting=False):
            pass

    def check(self) -> None:
        """Waits up to a second for the end of a service, which explains a failed call to that service.

        Raises:
            Unavailable: a service ended by itself.
        """
        self._wait(_CHECK_TIMEOUT_S, starting=False)

    def stop(self) -> None:
        """Drains the services in reverse order.

        All services are killed if a drain takes too long or a stop is requested again.
        """
        try:
            for process in reversed(self.processes):
                if process.exit_code is None:
                    process.terminate()
                    if not self._drained(process):
                        break
        finally:
            for process in self.processes:
                process.kill()
            for process in self.processes:
                process.join(_KILL_TIMEOUT_S)

    def _drained(self, process: ServiceProcess) -> bool:
        deadline = time.monotonic() + self._drain_timeout_s
        while process.exit_code is None:
            if self._events.get(max(0.0, deadline - time.monotonic())) in {None, _STOP}:
                return False
        return True

    def _wait(self, timeout_s: float | None, *, starting: bool) -> bool:
        """Waits for an event and returns False if the event is a stop request."""
        event = self._events.get(timeout_s)
        if isinstance(event, ServiceProcess):
            raise _ended(event, starting=starting)
        return event is None


def _ended(process: ServiceProcess, *, starting: bool) -> InvalidRequest | Unavailable:
    refused = starting and process.exit_code == 2
    verb = "refused to start" if refused else process.ending
    message = f"{process.spec.name} {verb}{_log_of(process)}"
    if refused:
        return InvalidRequest(message, next_step="correct what the service complains about")
    return Unavailable(message, next_step=f"look at its log, {process.log_path}")


def _log_of(process: ServiceProcess) -> str:
    lines = process.last_lines()
    return "; the end of its log:\n" + "\n".join(f"    {line}" for line in lines) if lines else "; its log is empty"
