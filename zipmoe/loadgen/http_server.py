"""Sends jobs to servers with OpenAI's HTTP API: the gateway, and servers to compare with."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from zipmoe import errors
from zipmoe.errors import InvalidRequest, Unavailable, ZipMoeError
from zipmoe.loadgen.http_stream import HttpAddress, open_stream
from zipmoe.loadgen.jobs import Job
from zipmoe.loadgen.server import AnswerUsage, Server

_BY_STATUS: dict[int, type[ZipMoeError]] = {
    400: errors.InvalidRequest,
    401: errors.Unauthenticated,
    404: errors.NotFound,
    408: errors.DeadlineExceeded,
    413: errors.InvalidRequest,
    415: errors.InvalidRequest,
    429: errors.ResourceExhausted,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}

_MODEL_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class ServedModel:
    """The model of a server; None for figures that the server does not report."""

    name: str
    vocabulary_size: int | None
    context_tokens: int | None


class HttpServer(Server):
    """A server at a base URL, asked through `/v1/completions`. Every request opens a new connection."""

    def __init__(self, address: HttpAddress, model: str, temperature: float | None, timeout_s: float | None) -> None:
        self._address = address
        self._model = model
        self._temperature = temperature
        self._timeout_s = timeout_s

    async def ask(self, job: Job) -> AsyncIterator[AnswerUsage | None]:
        """Streams one completion."""
        asked: dict[str, Any] = {
            "model": self._model,
            "prompt": job.prompt,
            "max_tokens": job.answer_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            # Requests no alternatives. With log-probabilities, a token that completes no character has an event too.
            "logprobs": 0,
        }
        if self._temperature is not None:
            asked["temperature"] = self._temperature
        prompt_tokens, complete, named = 0, False, False
        async with open_stream(self._address, "/v1/completions", asked, self._timeout_s) as (status, lines):
            if status != 200:
                raise _error(status, [line async for line in lines])
            async for line in lines:
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    complete = True
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise errors.InternalError(str(event["error"].get("message")))
                prompt_tokens = (event.get("usage") or {}).get("prompt_tokens", prompt_tokens)
                for choice in event.get("choices", ()):
                    # Once log-probabilities have come, text without log-probabilities is held-back text, not a token.
                    named = named or bool(choice.get("logprobs"))
                    if choice.get("logprobs") or (choice.get("text") and not named):
                        yield None
        if not complete:
            raise Unavailable("the stream ended without saying that the answer is complete")
        yield AnswerUsage(prompt_tokens)


async def served_model(address: HttpAddress) -> ServedModel:
    """Asks a server for its first model.

    Raises:
        ZipMoeError: the server does not answer, or not in the form of OpenAI's API.
    """
    async with open_stream(address, "/v1/models", None, _MODEL_TIMEOUT_S) as (status, lines):
        text = [line async for line in lines]
    if status != 200:
        raise _error(status, text)
    try:
        card: dict[str, Any] = json.loads("".join(text))["data"][0]
        vocabulary = (card.get("meta") or {}).get("n_vocab")
        return ServedModel(str(card["id"]), vocabulary, card.get("max_model_len"))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InvalidRequest(f"{address} does not answer as OpenAI's API does") from error


def _error(status: int, lines: list[str]) -> ZipMoeError:
    try:
        message = str(json.loads("".join(lines))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"HTTP status {status}"
    return _BY_STATUS.get(status, errors.InternalError)(message)
