"""`zipmoe health`: checks whether the services serve. Quick, because containers run it every few seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zipmoe.cli.console import JsonFlag, print_json
from zipmoe.cli.problem import FAILURE_EXIT_CODE


def health(
    endpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ENDPOINT]...",
            help="expert-store, decoder, router, unix:PATH, HOST:PORT or http://HOST:PORT.",
            show_default=False,
        ),
    ] = None,
    runtime_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", envvar="ZIPMOE_RUNTIME_DIR", help="Where the services' sockets are.")
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For each answer.")] = 3.0,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM file of the authority of a HOST:PORT's certificate.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Asks the given endpoints, or all three services of the runtime directory, for their health.

    The exit code is 0 only if all of the asked servers serve.
    """
    from zipmoe.cli.watching.probe import SERVING, Endpoint, health_of, local_endpoints, url_health_of
    from zipmoe.process.runtime import SocketPaths, runtime_directory

    known = local_endpoints(SocketPaths(runtime_directory(runtime_dir)))
    asked = [known.get(name, Endpoint(name, name)) for name in endpoints or known]

    def status_of(endpoint: Endpoint) -> str:
        if endpoint.target.startswith(("http://", "https://")):
            return url_health_of(endpoint.target, timeout, tls_ca)
        return health_of(endpoint, timeout, None if endpoint.health_name else tls_ca)

    found = [(endpoint, status_of(endpoint)) for endpoint in asked]
    healthy = all(status == SERVING for _, status in found)
    if json_output:
        rows = [{"name": endpoint.name, "target": endpoint.target, "status": status} for endpoint, status in found]
        print_json({"healthy": healthy, "endpoints": rows})
    else:
        width = max(len(endpoint.name) for endpoint, _ in found)
        for endpoint, status in found:
            typer.echo(f"{endpoint.name:<{width}}  {status}")
    if not healthy:
        raise typer.Exit(FAILURE_EXIT_CODE)
