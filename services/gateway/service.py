"""The HTTP application: routes, API key, limits and errors; the router generates the answers."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from zipmoe.client import AsyncGenerationClient
from zipmoe.errors import ZipMoeError
from zipmoe.services.gateway.answers.answering import Answering, GenerationCall
from zipmoe.services.gateway.answers.token_texts import TokenTexts
from zipmoe.services.gateway.browsers import BrowserRules, is_preflight
from zipmoe.services.gateway.config import GatewayConfig
from zipmoe.services.gateway.dialects import DIALECTS, Dialect, error_form
from zipmoe.services.gateway.exchange import ClientGone, Exchange
from zipmoe.services.gateway.http_problem import HttpProblem, problem_of, unexpected_error
from zipmoe.services.gateway.metrics import GONE, HEALTH_ROUTES, OTHER_ROUTE, GatewayMetrics
from zipmoe.services.gateway.named_model import NamedModel
from zipmoe.services.gateway.tokenizing import Tokenizing

_LOG = structlog.get_logger(__name__)
_SCHEME = "bearer"
_HEALTH_TIMEOUT_S = 2.0
_BUSY_RETRY_S = 1.0


@dataclass(frozen=True)
class Route:
    """The handler of a path, and the conditions of its use."""

    method: str
    handler: Callable[[Exchange], Awaitable[None]]
    is_open: bool = False
    """Whether the route needs no API key."""
    is_counted: bool = True
    """Whether `max_open_requests` limits the open requests of this route and the other counted routes."""


class Gateway:
    """An ASGI application in front of one router."""

    def __init__(
        self, client: AsyncGenerationClient, config: GatewayConfig, metrics: GatewayMetrics, api_key: str | None
    ) -> None:
        self._client = client
        self._config = config
        self._metrics = metrics
        self._api_key = None if api_key is None else api_key.encode()
        texts = TokenTexts(client)
        self._model = NamedModel(client, texts, config.model_name)
        self._answering = Answering(client, texts, config.request_timeout_s, config.keep_alive_s)
        tokenizing = Tokenizing(client, texts, self._model)
        self._browsers = BrowserRules(
            config.allow_origin, config.allow_host, listen=config.listen, has_api_key=api_key is not None
        )
        self._counted_requests = 0  # open requests of counted routes
        self._routes = {
            **{path: Route("POST", self._generation(dialect)) for path, dialect in DIALECTS.items()},
            "/v1/responses/input_tokens": Route("POST", self._small(tokenizing.count_response)),
            "/v1/messages/count_tokens": Route("POST", self._small(tokenizing.count_message)),
            "/tokenize": Route("POST", self._small(tokenizing.tokenize)),
            "/detokenize": Route("POST", self._small(tokenizing.detokenize)),
            "/v1/models": Route("GET", self._models, is_counted=False),
            **dict.fromkeys(HEALTH_ROUTES, Route("GET", self._health, is_open=True, is_counted=False)),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one HTTP request."""
        assert scope["type"] == "http", "uvicorn has been told to offer nothing else"
        path = str(scope["path"])
        exchange = Exchange(scope, receive, send, uuid.uuid4().hex, error_form(path))
        route = path if path in self._routes else OTHER_ROUTE
        begin_s = time.perf_counter()
        status = GONE
        self._metrics.open_requests.inc()
        try:
            await self._serve(exchange, path)
            status = exchange.status or 500
        except ClientGone:
            pass
        finally:
            self._metrics.open_requests.dec()
            seconds = time.perf_counter() - begin_s
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            log = _LOG.debug if route in HEALTH_ROUTES else _LOG.info
            log("request", request_id=exchange.request_id, route=route, status=status, seconds=round(seconds, 4))

    async def _serve(self, exchange: Exchange, path: str) -> None:
        try:
            headers = exchange.request.headers
            exchange.headers = self._browsers.answer_headers(headers)
            self._browsers.check(headers, path)
            if is_preflight(exchange.request.method, headers):
                await exchange.permit(self._browsers.preflight(headers))
                return
            route = self._find(exchange, path)
            with self._place(route):
                await route.handler(exchange)
        except HttpProblem as problem:
            await exchange.fail(problem)
        except ZipMoeError as error:
            http_error = problem_of(error)
            if http_error.status >= 500:
                _LOG.warning(
                    "request_refused", request_id=exchange.request_id, error=type(error).__name__, reason=error.message
                )
            await exchange.fail(http_error)
        except (ClientGone, asyncio.CancelledError):
            raise
        except Exception:
            _LOG.exception("request_failed", request_id=exchange.request_id)
            await exchange.fail(unexpected_error())

    def _find(self, exchange: Exchange, path: str) -> Route:
        request = exchange.request
        # Clients that list models look up a single model as /v1/models/NAME.
        route = self._routes.get("/v1/models" if path.startswith("/v1/models/") else path)
        if route is None or not route.is_open:
            self._check_key(request.headers)
        if route is None:
            raise HttpProblem(404, f"no such path: {path}", code="unknown_url")
        allowed = ("GET", "HEAD") if route.method == "GET" else (route.method,)  # uvicorn leaves the body of HEAD out
        if request.method not in allowed:
            raise HttpProblem(
                405, f"{path} takes {route.method}, not {request.method}", headers={"allow": ", ".join(allowed)}
            )
        return route

    @contextmanager
    def _place(self, route: Route) -> Iterator[None]:
        """Takes a place of `max_open_requests` for a request of a counted route.

        Raises:
            HttpProblem: all places are taken.
        """
        if not route.is_counted:
            yield
            return
        if self._counted_requests >= self._config.max_open_requests:
            raise HttpProblem(
                429,
                f"the gateway serves {self._config.max_open_requests} requests already",
                "rate_limit_error",
                code="resource_exhausted",
                retry_after_s=_BUSY_RETRY_S,
            )
        self._counted_requests += 1
        try:
            yield
        finally:
            self._counted_requests -= 1

    def _check_key(self, headers: Headers) -> None:
        """Checks the API key, which may come as `authorization: bearer KEY` or as `x-api-key: KEY`."""
        if self._api_key is None:
            return
        bearers, bare = headers.getlist("authorization"), headers.getlist("x-api-key")
        scheme, _, key = bearers[0].partition(" ") if len(bearers) == 1 else ("", "", "")
        keys = [*([key] if scheme.lower() == _SCHEME else []), *(bare if len(bare) == 1 else [])]
        if not any(hmac.compare_digest(each.strip().encode("latin-1"), self._api_key) for each in keys):
            message = "wrong API key" if bearers or bare else "this gateway needs an API key"
            raise HttpProblem(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    def _generation(self, dialect: Dialect) -> Callable[[Exchange], Awaitable[None]]:
        async def answer(exchange: Exchange) -> None:
            body = dialect.parse(await self._body(exchange))

            async def work() -> None:
                model = await self._model.named(body.model)
                if dialect.is_conversation and not model.has_chat_template:
                    raise HttpProblem(400, f"{body.model} has no chat template; use /v1/completions", param="model")
                writer = dialect.writer(exchange.request_id, body, model)
                await self._generate(exchange, GenerationCall(body, writer))

            await exchange.while_connected(work())

        return answer

    def _small(self, compute: Callable[[bytes], Awaitable[dict[str, Any]]]) -> Callable[[Exchange], Awaitable[None]]:
        """Returns the handler of a request that needs no generation."""

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(200, await compute(await self._body(exchange)))

        return answer

    async def _generate(self, exchange: Exchange, call: GenerationCall) -> None:
        begin_s = time.perf_counter()
        streams = self._metrics.open_streams if call.body.stream else None
        if streams is not None:
            streams.inc()
        try:
            await self._answering.run(
                exchange, call, lambda: self._metrics.first_token.observe(time.perf_counter() - begin_s)
            )
        finally:
            if streams is not None:
                streams.dec()

    async def _models(self, exchange: Exchange) -> None:
        wanted = exchange.request.scope["path"].removeprefix("/v1/models").removeprefix("/")
        card = self._model.card(await self._model.named(wanted or None))
        page = {"has_more": False, "first_id": card["id"], "last_id": card["id"]}  # fields of Anthropic's API
        await exchange.answer(200, card if wanted else {"object": "list", "data": [card], **page})

    async def _health(self, exchange: Exchange) -> None:
        model = await self._client.model(timeout_s=_HEALTH_TIMEOUT_S)
        await exchange.answer(200, {"status": "ok", "model": self._model.name_of(model)})

    async def _body(self, exchange: Exchange) -> bytes:
        return await exchange.body(int(self._config.max_request_bytes), self._config.body_timeout_s)
