"""The real services as child processes, and ways to wait for what they say of themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from zipmoe.process.runtime import SocketPaths
from zipmoe.rpc.client import channel, wait_until_serving

ROOT = Path(__file__).parents[2]
STORE_SERVICE = "zipmoe.internal.v1.ExpertStoreService"
DECODER_SERVICE = "zipmoe.internal.v1.DecoderService"
ROUTER_SERVICE = "zipmoe.v1.GenerationService"
START_TIMEOUT_S = 60.0
ROUTER_TIMEOUT_S = 120.0  # it imports torch

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


class Service:
    """One service process, of `services` or of a module that is named in full; its log goes to a file."""

    def __init__(self, module: str, runtime_dir: Path, *flags: str) -> None:
        self.module = module
        self.log_path = runtime_dir / f"{module}-{os.urandom(3).hex()}.log"
        name = module if "." in module else f"zipmoe.services.{module}"
        command = [sys.executable, "-m", name, "--runtime-dir", str(runtime_dir), *flags]
        with self.log_path.open("wb") as log:
            self._popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self) -> int:
        """Waits for the end; returns the exit code."""
        return self._popen.wait(START_TIMEOUT_S)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def end(self) -> None:
        """Ends the process, if it has not ended yet."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(10.0)
            except subprocess.TimeoutExpired:
                self.kill()

    def log(self) -> str:
        return self.log_path.read_text()


class Services:
    """Starts services in one run directory and ends them all in the end."""

    def __init__(self, runtime_dir: Path) -> None:
        self.runtime_dir = runtime_dir
        self.sockets = SocketPaths(runtime_dir)
        self._started: list[Service] = []

    @property
    def decoder_target(self) -> str:
        return f"unix:{self.sockets.decoder}"

    @property
    def router_target(self) -> str:
        return f"unix:{self.sockets.router}"

    def start(self, module: str, store: Path, *flags: str) -> Service:
        """Starts one; metrics go to any free port, arenas are not locked."""
        made = Service(
            module, self.runtime_dir, "--store", str(store), "--metrics-port", "0", "--no-lock-memory", *flags
        )
        self._started.append(made)
        return made

    def store(self, store: Path, *flags: str) -> Service:
        return self.start("expert_store", store, *flags)

    def decoder(self, store: Path, *flags: str) -> Service:
        return self.start("decoder", store, *flags)

    def router(self, store: Path, *flags: str, module: str = "router") -> Service:
        """Starts a router that computes with one thread."""
        fixed = ("--device", "cpu", "--threads", "1", "--listen", "", "--metrics-port", "0")
        made = Service(module, self.runtime_dir, "--store", str(store), *fixed, *flags)
        self._started.append(made)
        return made

    def wait_for_router(self) -> None:
        wait_until_serving(self.sockets.router, ROUTER_SERVICE, ROUTER_TIMEOUT_S)

    def wait_for_store(self) -> None:
        wait_until_serving(self.sockets.expert_store, STORE_SERVICE, START_TIMEOUT_S)

    def wait_for_decoder(self) -> None:
        wait_until_serving(self.sockets.decoder, DECODER_SERVICE, START_TIMEOUT_S)

    def wait_until_decoder_is(self, status: int) -> None:
        """Waits for a change of the running decoder's health."""
        with channel(self.sockets.decoder) as opened:
            stub = health_pb2_grpc.HealthStub(opened)
            request = health_pb2.HealthCheckRequest(service=DECODER_SERVICE)
            watch = stub.Watch(request, timeout=START_TIMEOUT_S, wait_for_ready=True)  # type: ignore[attr-defined]
            assert any(response.status == status for response in watch)
            watch.cancel()

    def started(self, module: str) -> Service:
        """The latest process of a module."""
        return [service for service in self._started if service.module == module][-1]

    def end(self) -> None:
        for service in reversed(self._started):
            service.end()


@contextmanager
def running_services() -> Iterator[Services]:
    """A run directory short enough for sockets; what is started in it does not outlive the block."""
    with tempfile.TemporaryDirectory(prefix="zm-") as folder:
        services = Services(Path(folder))
        try:
            yield services
        finally:
            services.end()


def metric(service: Service, name: str) -> float:
    """Reads one sample, written as Prometheus writes it, off a running service."""
    (port,) = {
        word.removeprefix("metrics_port=") for word in service.log().split() if word.startswith("metrics_port=")
    } - {"0"}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10.0) as response:
        lines: list[str] = response.read().decode().splitlines()
    (value,) = [line.rpartition(" ")[2] for line in lines if line.rpartition(" ")[0] == name]
    return float(value)


def free_slots(service: Service, pool: str) -> int:
    return int(metric(service, f'zipmoe_arena_slots{{pool="{pool}",state="free"}}'))
