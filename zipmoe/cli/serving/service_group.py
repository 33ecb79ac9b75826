"""The three services of a device and the optional HTTP gateway, as `up` and `demo` start them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from zipmoe.cli.console import err, waiting
from zipmoe.cli.flags import Settings, flags
from zipmoe.cli.serving.instance_lock import instance_lock
from zipmoe.cli.serving.service_process import ServiceProcess, ServiceSpec
from zipmoe.cli.serving.service_verb import GATEWAY, GATEWAY_MODULE, SERVICE_MODULES
from zipmoe.cli.serving.supervisor import Supervisor
from zipmoe.cli.watching.metrics_endpoints import noted_endpoints
from zipmoe.process.runtime import SocketPaths

_PROBE_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True)
class ServiceGroup:
    """Settings of the three services and of the optional gateway.

    Attributes:
        runtime_directory: existing directory of the sockets.
        log_directory: existing directory of the logs.
        metrics_ports: TCP ports of the metrics, in starting order of the services.
        shared: settings of all three services, by field names of the services' configurations.
        own: settings of single services, by service name.
        listen: TCP address of the router; empty for none.
        http_port: port of the gateway on the loopback address; None for no gateway.
    """

    runtime_directory: Path
    log_directory: Path
    metrics_ports: Sequence[int]
    shared: Settings
    own: Mapping[str, Settings] = field(default_factory=dict)
    listen: str = ""
    http_port: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the services in starting order."""
        return tuple(SERVICE_MODULES) if self.http_port is None else (*SERVICE_MODULES, GATEWAY)

    def specs(self) -> list[ServiceSpec]:
        """Returns the specifications of the services in starting order."""
        sockets = SocketPaths(self.runtime_directory)
        paths = {"expert-store": sockets.expert_store, "decoder": sockets.decoder, "router": sockets.router}
        specs = []
        for (name, module), port in zip(
            SERVICE_MODULES.items(), self.metrics_ports[: len(SERVICE_MODULES)], strict=True
        ):
            settings = {
                **self.shared,
                **self.own.get(name, {}),
                "runtime_dir": self.runtime_directory,
                "metrics_port": port,
            }
            if name == "router":
                settings["listen"] = self.listen
            tcp = (self.listen,) if name == "router" and self.listen else ()
            specs.append(
                ServiceSpec(name, module, tuple(flags(settings)), paths[name], (f"unix:{paths[name]}", *tcp), port)
            )
        return specs if self.http_port is None else [*specs, self._gateway(self.http_port)]

    def _gateway(self, http_port: int) -> ServiceSpec:
        settings = {
            **{name: self.shared[name] for name in ("log_level", "metrics_address") if name in self.shared},
            **self.own.get(GATEWAY, {}),
            "router": f"unix:{SocketPaths(self.runtime_directory).router}",
            "listen": f"127.0.0.1:{http_port}",
            "runtime_dir": self.runtime_directory,
            "metrics_port": self.metrics_ports[-1],
        }
        url = f"http://127.0.0.1:{http_port}"
        return ServiceSpec(
            GATEWAY, GATEWAY_MODULE, tuple(flags(settings)), None, (f"{url}/v1",), self.metrics_ports[-1], url
        )


@contextmanager
def running(group: ServiceGroup, *, drain_timeout_s: float = 60.0) -> Iterator[Supervisor]:
    """Starts the services, and drains them at the end of the block.

    The block begins before the services serve.

    Raises:
        AlreadyRunning: another `up` uses the runtime directory.
    """
    address = str(group.shared.get("metrics_address") or "127.0.0.1")
    ports = dict(zip(group.names, group.metrics_ports, strict=True))
    with (
        instance_lock(group.runtime_directory / "up.lock"),
        noted_endpoints(group.runtime_directory, address, ports),
        Supervisor(group.specs(), group.log_directory, drain_timeout_s=drain_timeout_s) as supervisor,
    ):
        supervisor.start()
        yield supervisor


def wait_until_serving(supervisor: Supervisor, timeout_s: float, *, quiet: bool) -> dict[str, float] | None:
    """Waits for all services and shows the name of the awaited service.

    Returns:
        Seconds from the call until each service served, by name; None if a stop was requested first.

    Raises:
        ZipMoeError: as `Supervisor.wait_until_serving`.
    """
    # Imported after the processes have been started, because gRPC does not support a later fork.
    from zipmoe.cli.watching.probe import SERVING, health_of, local_endpoints, url_health_of

    first = supervisor.processes[0].spec.socket
    assert first is not None, "the expert store has a socket"
    endpoints = local_endpoints(SocketPaths(first.parent))
    begin_s = time.monotonic()
    ready: dict[str, float] = {}

    def serves(spec: ServiceSpec) -> bool:
        show(f"waiting for {spec.name} ({time.monotonic() - begin_s:.0f} s)")
        if spec.socket is None:
            return url_health_of(spec.health_url, _PROBE_TIMEOUT_S) == SERVING
        return spec.socket.exists() and health_of(endpoints[spec.name], _PROBE_TIMEOUT_S) == SERVING

    def on_serving(process: ServiceProcess) -> None:
        ready[process.spec.name] = time.monotonic() - begin_s
        if not quiet:
            err().print(f"{process.spec.name} serves after {ready[process.spec.name]:.1f} s")

    with waiting("starting the services", quiet=quiet) as show:
        served = supervisor.wait_until_serving(serves, on_serving, timeout_s)
    return ready if served else None
