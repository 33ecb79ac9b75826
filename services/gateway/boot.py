"""Builds and runs a gateway: client of the router, application, HTTP and metrics servers."""

from __future__ import annotations

from contextlib import ExitStack

import structlog

from zipmoe.client import AsyncGenerationClient
from zipmoe.process.metrics import service_registry, start_metrics_server
from zipmoe.process.secret_file import read_secret
from zipmoe.services.gateway.config import GatewayConfig
from zipmoe.services.gateway.connections import ConnectionLimits
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
    api_key = read_secret(config.api_key_file) if config.api_key_file else None
    token = read_secret(config.router_token_file) if config.router_token_file else None
    with ExitStack() as stack:
        host = HttpHost(
            config.listen,
            certificate=config.tls_certificate,
            key=config.tls_key,
            has_api_key=api_key is not None,
            insecure_listen=config.insecure_listen,
            drain_timeout_s=config.drain_timeout_s,
            limits=ConnectionLimits.here(config.max_connections, config.idle_timeout_s),
        )
        stack.callback(host.close)
        metrics_server = start_metrics_server(config.metrics_port, registry, address=config.metrics_address)
        stack.callback(metrics_server.stop)
        target = config.router or f"unix:{config.sockets().router}"
        client = AsyncGenerationClient(target, token=token, tls_ca=config.router_tls_ca)
        try:
            found = {"metrics_port": metrics_server.port, "http_port": host.port, "router": target}
            _LOG.info("starting", **{**config.resolved(), **found})
            await host.run_until_signal(Gateway(client, config, metrics, api_key), stack.close)
        finally:
            await client.close()
