"""`zipmoe up`: starts and supervises the three services and, with --gateway, the HTTP gateway."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zipmoe.cli import options
from zipmoe.cli.console import JsonFlag, err, out, print_json, table
from zipmoe.cli.device_choice import resolve_device
from zipmoe.cli.flags import Settings
from zipmoe.cli.planning.budget_settings import parse_budgeted
from zipmoe.cli.planning.planned_settings import AUTO, RULE, planned_settings
from zipmoe.cli.serving.free_ports import free_ports
from zipmoe.cli.serving.log_follower import following
from zipmoe.cli.serving.service_group import ServiceGroup, running, wait_until_serving
from zipmoe.cli.serving.service_verb import GATEWAY
from zipmoe.errors import InvalidRequest

if TYPE_CHECKING:
    from zipmoe.cli.serving.supervisor import Supervisor


def up(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Directory of a packed store.")],
    memory_budget: options.MemoryBudget = None,
    expert_memory: options.ExpertMemory = None,
    cache_slots: options.CacheSlots = AUTO,
    policy: options.Policy = None,
    scheduler: options.Scheduler = None,
    prefetch: options.Prefetch = None,
    fill: options.Fill = None,
    trace: options.Trace = None,
    kv_tokens: options.KvTokens = None,
    kv_cache: options.KvCache = None,
    dense: options.Dense = None,
    tensor_form: options.TensorForm = None,
    max_prompt_tokens: options.MaxPromptTokens = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    io_threads: options.IoThreads = None,
    threads: options.Threads = None,
    row_pass: options.RowPass = None,
    speculate: options.Speculate = None,
    listen: options.Listen = "127.0.0.1:50051",
    insecure_listen: options.InsecureListen = False,
    tls_certificate: options.TlsCertificate = None,
    tls_key: options.TlsKey = None,
    token_file: options.TokenFile = None,
    prefill_rows: options.PrefillRows = None,
    reuse_answers: options.ReuseAnswers = False,
    trust_control_tokens: options.TrustControlTokens = False,
    max_running: options.MaxRunning = None,
    max_waiting: options.MaxWaiting = None,
    max_waiting_tokens: options.MaxWaitingTokens = None,
    gateway: options.Gateway = False,
    gateway_port: options.GatewayPort = 8080,
    allow_origin: options.AllowOrigin = None,
    allow_host: options.AllowHost = None,
    runtime_dir: options.RuntimeDir = None,
    log_dir: options.LogDir = None,
    log_level: options.LogLevel = "info",
    metrics_address: options.MetricsAddress = "127.0.0.1",
    metrics_port: options.MetricsPort = 9101,
    start_timeout: options.StartTimeout = 600.0,
    drain_timeout: options.DrainTimeout = 30.0,
    verbose: options.Verbose = False,
    json_output: JsonFlag = False,
) -> None:
    """Runs the expert store, the decoder and the router together.

    Ctrl-C or SIGTERM drains the services in reverse order; a second signal ends them at once. If a service dies, the
    others are stopped. With --json, one object is printed when all services serve.
    """
    from zipmoe.process.runtime import runtime_directory
    from zipmoe.store.format.manifest import read_manifest

    begin_s = time.monotonic()
    if memory_budget is not None and expert_memory is not None:
        raise InvalidRequest("give either --memory-budget or --expert-memory, not both")
    if gateway:
        check_gateway()
    web = web_settings(allow_origin or [], allow_host or [], gateway=gateway)
    manifest = read_manifest(store)  # a wrong path fails here, not in three processes
    runtime = runtime_directory(runtime_dir)
    shared: dict[str, Any] = {
        "store": store.absolute(),
        "memory_budget": memory_budget,
        "expert_memory": expert_memory,
        "cache_slots": None if cache_slots in (AUTO, RULE) else cache_slots,
        "kv_tokens": kv_tokens,
        "kv_cache": kv_cache,
        "dense": dense,
        "tensor_form": tensor_form,
        "max_prompt_tokens": max_prompt_tokens,
        "workers": workers,
        "device": resolve_device(device),
        "log_level": log_level,
        "metrics_address": metrics_address,
    }
    budgeted = parse_budgeted(shared, "up")
    budgeted.split_here(manifest)  # so does an infeasible budget
    if cache_slots == AUTO and budgeted.cache_slots is None and budgeted.memory_budget is not None:
        shared |= planned_settings(store, {**shared, "io_threads": io_threads}, quiet=json_output)
    own: dict[str, Settings] = {
        "expert-store": {"io_threads": io_threads},
        "router": {
            "policy": policy,
            "scheduler": scheduler,
            "prefetch": prefetch,
            "fill": fill,
            "trace": None if trace is None else trace.absolute(),
            "threads": threads,
            "pass": row_pass,
            "speculate": speculate,
            "insecure_listen": insecure_listen,
            "tls_certificate": tls_certificate,
            "tls_key": tls_key,
            "token_file": token_file,
            "prefill_rows": prefill_rows,
            "reuse_answers": reuse_answers or None,
            "trust_control_tokens": trust_control_tokens or None,
            "max_running": max_running,
            "max_waiting": max_waiting,
            "max_waiting_tokens": max_waiting_tokens,
            "drain_timeout_s": drain_timeout,
        },
        GATEWAY: {"drain_timeout_s": drain_timeout, **web},
    }
    count = 4 if gateway else 3
    ports = [metrics_port + index for index in range(count)] if metrics_port else free_ports(count)
    http_port = (gateway_port or free_ports(1)[0]) if gateway else None
    with ExitStack() as stack:
        logs = stack.enter_context(log_directory(runtime, log_dir))
        group = ServiceGroup(runtime, logs, ports, shared, own, listen, http_port)
        # Twice the router's own drain timeout, so that the router ends by itself before it is killed.
        supervisor = stack.enter_context(running(group, drain_timeout_s=2 * drain_timeout + 10))
        stack.enter_context(stopped_by_signals(supervisor))
        if verbose:
            stack.enter_context(following([process.log_path for process in supervisor.processes]))
        ready = wait_until_serving(supervisor, start_timeout, quiet=json_output)
        if ready is None:
            return
        startup_s = time.monotonic() - begin_s
        if json_output:
            _print_endpoints_json(supervisor, startup_s, ready)
        else:
            _print_endpoints(group, supervisor, startup_s)
        supervisor.run()
        if not json_output:
            err().print("draining (again to end at once)")


def check_gateway() -> None:
    """Checks that the libraries of the gateway are installed, which `pip install zipmoe` leaves out.

    Raises:
        InvalidRequest: a library is missing.
    """
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise InvalidRequest(
            f"the gateway needs {' and '.join(missing)}, not installed", next_step="pip install 'zipmoe[gateway]'"
        )


def web_settings(origins: Sequence[str], hosts: Sequence[str], *, gateway: bool) -> Settings:
    """Returns the gateway's settings about web pages.

    Raises:
        InvalidRequest: an origin or a host is malformed, or there is no gateway.
    """
    from zipmoe.process.web_names import parse_host, parse_origin

    if (origins or hosts) and not gateway:
        raise InvalidRequest("--allow-origin and --allow-host are about the gateway", next_step="add --gateway")
    try:
        return {"allow_origin": [*map(parse_origin, origins)], "allow_host": [*map(parse_host, hosts)]}
    except ValueError as error:
        raise InvalidRequest(str(error), next_step="correct --allow-origin or --allow-host") from None


@contextmanager
def log_directory(runtime: Path, wanted: Path | None) -> Iterator[Path]:
    """Creates the directory of the logs: the user's, or a directory that is removed after a clean end."""
    directory = wanted or runtime / "logs"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    yield directory
    if wanted is None:
        for log in directory.glob("*.log"):
            log.unlink()
        if not any(directory.iterdir()):
            directory.rmdir()


@contextmanager
def stopped_by_signals(supervisor: Supervisor) -> Iterator[None]:
    """Stops the supervisor at SIGINT, SIGTERM or SIGHUP during the block, and at the end of the block."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda *_: supervisor.request_stop()) for number in numbers]
    try:
        yield
    finally:
        supervisor.stop()  # with the handlers still in place, so that a second signal ends the drain
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _print_endpoints(group: ServiceGroup, supervisor: Supervisor, startup_s: float) -> None:
    rows = [
        (
            process.spec.name,
            "  ".join(process.spec.endpoints),
            f"http://{group.shared['metrics_address']}:{process.spec.metrics_port}/metrics",
            process.pid,
        )
        for process in supervisor.processes
    ]
    out().print(table(f"ready after {startup_s:.1f} s", ("service", "endpoints", "metrics", "pid"), rows))


def _print_endpoints_json(supervisor: Supervisor, startup_s: float, ready: dict[str, float]) -> None:
    print_json(
        {
            "startup_s": startup_s,
            "services": [
                {
                    "name": process.spec.name,
                    "pid": process.pid,
                    "endpoints": list(process.spec.endpoints),
                    "metrics_port": process.spec.metrics_port,
                    "log": str(process.log_path),
                    "ready_s": ready[process.spec.name],
                }
                for process in supervisor.processes
            ],
        }
    )
