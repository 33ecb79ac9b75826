"""Builds and runs a gateway: client of the router, application, HTTP and metrics servers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import structlog

from zipmoe.client import AsyncGenerationClient
from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.process.metrics import service_registry, start_metrics_server
from zipmoe.services.gateway.config import GatewayConfig
from zipmoe.services.gateway.host import HttpHost
from zipmoe.services.gateway.metrics import GatewayMetrics
from zipmoe.services.gateway.service import Gateway

_LOG = structlog.get_logger(__name__)


async def serve(config: GatewayConfig) -> None:
    """Runs the gateway until a signal; the router may start, stop and restart meanwhile.

    Raises:
        ZipMoeError: the gateway cannot start.
    """
    registry = service_registry("gateway")
    metrics = GatewayMetrics(registry)
    api_key = _secret(config.api_key_file)
    with ExitStack() as stack:
        host = HttpHost(
            config.listen,
            certificate=config.tls_certificate,
            key=config.tls_key,
            has_api_key=api_key is not None,
            insecure_listen=config.insecure_listen,
            drain_timeout_s=config.drain_timeout_s,
        )
        stack.callback(host.close)
        metrics_server = start_metrics_server(config.metrics_port, registry, address=config.metrics_address)
        stack.callback(metrics_server.stop)
        target = config.router or f"unix:{config.sockets().router}"
        client = AsyncGenerationClient(target, token=_secret(config.router_token_file), tls_ca=config.router_tls_ca)
        try:
            found = {"metrics_port": metrics_server.port, "http_port": host.port, "router": target}
            _LOG.info("starting", **{**config.resolved(), **found})
            await host.run_until_signal(Gateway(client, config, metrics, api_key), stack.close)
        finally:
            await client.close()


def _secret(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"cannot read the secret in {path}: {error}") from error
    if not text or not text.isprintable():
        raise InvalidRequest(f"{path} holds no secret: it has to be printable ASCII and not empty")
    return text
