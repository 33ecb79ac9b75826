"""A gateway over a router that follows a script, on a real port, in the event loop of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx2
import openai
from prometheus_client import CollectorRegistry

from tests.cli.fake_router import FakeRouter, running_router
from zipmoe.client import AsyncGenerationClient
from zipmoe.services.gateway.config import GatewayConfig
from zipmoe.services.gateway.connections import ConnectionLimits
from zipmoe.services.gateway.host import HttpHost
from zipmoe.services.gateway.metrics import GatewayMetrics
from zipmoe.services.gateway.service import Gateway

MODEL = "fake"
USER = {"role": "user", "content": "Hi"}


@dataclass(frozen=True)
class Front:
    """A running gateway."""

    url: str
    router: FakeRouter
    registry: CollectorRegistry
    host: HttpHost
    connections: httpx2.AsyncClient

    def openai(self, api_key: str = "any") -> openai.AsyncOpenAI:
        """OpenAI's own client, which retries nothing."""
        url = f"{self.url}/v1"
        return openai.AsyncOpenAI(base_url=url, api_key=api_key, max_retries=0, http_client=self.connections)

    def anthropic(self, api_key: str = "any") -> anthropic.AsyncAnthropic:
        """Anthropic's own client, which retries nothing."""
        return anthropic.AsyncAnthropic(base_url=self.url, api_key=api_key, max_retries=0, http_client=self.connections)

    def http(self) -> httpx2.AsyncClient:
        """A bare HTTP client."""
        return httpx2.AsyncClient(base_url=self.url, trust_env=False)

    def metric(self, name: str, **labels: str) -> float:
        """A sample of the gateway's own metrics."""
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def front(
    router: FakeRouter | None = None, *, api_key: str | None = None, target: str | None = None, **settings: Any
) -> AsyncIterator[Front]:
    """Runs a gateway during the block."""
    router = router or FakeRouter()
    config = GatewayConfig(**settings)
    registry = CollectorRegistry()
    with running_router(router) as real_target:
        host = HttpHost(
            "127.0.0.1:0",
            certificate=None,
            key=None,
            has_api_key=api_key is not None,
            insecure_listen=False,
            drain_timeout_s=5.0,
            limits=ConnectionLimits.here(config.max_connections, config.idle_timeout_s),
        )
        async with AsyncGenerationClient(target or real_target) as client:
            serving = asyncio.ensure_future(host.serve(Gateway(client, config, GatewayMetrics(registry), api_key)))
            try:
                async with httpx2.AsyncClient(trust_env=False) as connections:
                    yield Front(f"http://127.0.0.1:{host.port}", router, registry, host, connections)
            finally:
                host.drain()
                await serving
                host.close()


async def until(condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = 30.0) -> None:
    """Waits for something that nobody announces."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        met = condition()
        if met if isinstance(met, bool) else await met:
            return
        assert loop.time() < deadline, "it did not come"
        await asyncio.sleep(0.01)
