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
from starlette.types import Receive, Scope, Send

from zipmoe.client import AsyncGenerationClient, Model
from zipmoe.errors import ZipMoeError
from zipmoe.services.gateway.answering import Answering, GenerationCall, to_json
from zipmoe.services.gateway.browsers import BrowserRules, is_preflight
from zipmoe.services.gateway.config import GatewayConfig
from zipmoe.services.gateway.exchange import ClientGone, Exchange
from zipmoe.services.gateway.http_problem import HttpProblem, problem_of, unexpected_error
from zipmoe.services.gateway.metrics import GONE, HEALTH_ROUTES, OTHER_ROUTE, GatewayMetrics
from zipmoe.services.gateway.request_body.generation_body import GenerationBody, parse_chat, parse_completion
from zipmoe.services.gateway.shapes import AnswerShape, ChatShape, CompletionShape
from zipmoe.services.gateway.token_texts import TokenTexts

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
        self._texts = TokenTexts(client)
        self._answering = Answering(client, self._texts, config.request_timeout_s, config.keep_alive_s)
        self._browsers = BrowserRules(
            config.allow_origin, config.allow_host, listen=config.listen, has_api_key=api_key is not None
        )
        self._counted_requests = 0  # open requests of counted routes
        self._started_s = int(time.time())
        self._routes = {
            "/v1/chat/completions": Route("POST", self._chat),
            "/v1/completions": Route("POST", self._completion),
            "/v1/models": Route("GET", self._models, is_counted=False),
            **dict.fromkeys(HEALTH_ROUTES, Route("GET", self._health, is_open=True, is_counted=False)),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one HTTP request."""
        assert scope["type"] == "http", "uvicorn has been told to offer nothing else"
        exchange = Exchange(scope, receive, send, uuid.uuid4().hex)
        path = str(scope["path"])
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
            await exchange.fail(problem, to_json(problem.body()))
        except ZipMoeError as error:
            http_error = problem_of(error)
            if http_error.status >= 500:
                _LOG.warning(
                    "request_refused", request_id=exchange.request_id, error=type(error).__name__, reason=error.message
                )
            await exchange.fail(http_error, to_json(http_error.body()))
        except (ClientGone, asyncio.CancelledError):
            raise
        except Exception:
            _LOG.exception("request_failed", request_id=exchange.request_id)
            await exchange.fail(unexpected_error(), to_json(unexpected_error().body()))

    def _find(self, exchange: Exchange, path: str) -> Route:
        request = exchange.request
        # Clients that list models look up a single model as /v1/models/NAME.
        route = self._routes.get("/v1/models" if path.startswith("/v1/models/") else path)
        if route is None or not route.is_open:
            self._check_key(request.headers.getlist("authorization"))
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

    def _check_key(self, shown: list[str]) -> None:
        if self._api_key is None:
            return
        scheme, _, key = shown[0].partition(" ") if len(shown) == 1 else ("", "", "")
        is_right = hmac.compare_digest(key.strip().encode("latin-1"), self._api_key)
        if scheme.lower() != _SCHEME or not is_right:
            message = "wrong API key" if shown else "this gateway needs an API key"
            raise HttpProblem(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    async def _chat(self, exchange: Exchange) -> None:
        body = parse_chat(await self._body(exchange))

        async def work() -> None:
            model = await self._model(body.model)
            if not model.has_chat_template:
                raise HttpProblem(400, f"{body.model} has no chat template; use /v1/completions", param="model")
            await self._generate(exchange, _call(ChatShape, exchange, body, model))

        await exchange.while_connected(work())

    async def _completion(self, exchange: Exchange) -> None:
        body = parse_completion(await self._body(exchange))

        async def work() -> None:
            model = await self._model(body.model)
            await self._generate(exchange, _call(CompletionShape, exchange, body, model))

        await exchange.while_connected(work())

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
        model = await self._client.model()
        card = self._card(model)
        if wanted and wanted != card["id"]:
            raise _unknown(wanted, card["id"])
        found = card if wanted else {"object": "list", "data": [card]}
        await exchange.answer(200, to_json(found), {})

    async def _health(self, exchange: Exchange) -> None:
        model = await self._client.model(timeout_s=_HEALTH_TIMEOUT_S)
        await exchange.answer(200, to_json({"status": "ok", "model": self._name_of(model)}), {})

    async def _body(self, exchange: Exchange) -> bytes:
        return await exchange.body(int(self._config.max_request_bytes), self._config.body_timeout_s)

    async def _model(self, wanted: str) -> Model:
        # Asked for every request, well under a millisecond: a restarted router may serve another model.
        model = await self._client.model()
        self._texts.use_store(model.store_digest)
        if wanted != self._name_of(model):
            raise _unknown(wanted, self._name_of(model))
        return model

    def _name_of(self, model: Model) -> str:
        return self._config.model_name or model.name

    def _card(self, model: Model) -> dict[str, Any]:
        return {
            "id": self._name_of(model),
            "object": "model",
            "created": self._started_s,
            "owned_by": "zipmoe",
            "max_model_len": model.context_tokens,  # the field of vLLM
            "context_length": model.context_tokens,  # the field of OpenRouter
            "max_prompt_tokens": model.prompt_limit_tokens,
            # fields of llama.cpp's server, for load generators
            "meta": {"n_vocab": model.vocabulary_size, "n_ctx": model.context_tokens},
        }


def _call(kind: type[AnswerShape], exchange: Exchange, body: GenerationBody, model: Model) -> GenerationCall:
    choices = body.sampling.choices
    shape = kind(exchange.request_id, body.model, _fingerprint(model), body.with_logprobs, body.echo, choices)
    return GenerationCall(body, shape)


def _unknown(wanted: str, served: str) -> HttpProblem:
    return HttpProblem(
        404, f"no model {wanted!r} here, this gateway serves {served!r}", param="model", code="model_not_found"
    )


def _fingerprint(model: Model) -> str:
    """Names the version and the weights: a change of either may change the answer to a request with a seed."""
    return f"zipmoe-{model.version}-{model.store_digest}"
