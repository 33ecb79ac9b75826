"""litellm: chat completions by its provider for servers with OpenAI's API."""

from __future__ import annotations

import json
from typing import Any

import litellm

from scripts.try_clients.programs.harness import (
    JSON_TOKENS,
    LONG_TOKENS,
    MODEL,
    QUESTION,
    RESULT,
    SCHEMA,
    TOKENS,
    TOOL,
    URL,
    check_cancelled,
    check_fits,
    run,
)

TURNS: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
ASKED: dict[str, Any] = {"model": f"hosted_vllm/{MODEL}", "api_base": URL, "api_key": "none", "num_retries": 0}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
PROVIDERS = ("openai", "hosted_vllm")


def _asked(provider: str) -> dict[str, Any]:
    return {**ASKED, "model": f"{provider}/{MODEL}"}


def chat() -> None:
    """Asks, by both providers."""
    for provider in PROVIDERS:
        answer: Any = litellm.completion(messages=TURNS, max_tokens=TOKENS, **_asked(provider))
        assert answer.choices[0].message.content


def stream() -> None:
    """Reads streams, by both providers."""
    for provider in PROVIDERS:
        events: Any = litellm.completion(
            messages=TURNS, max_tokens=TOKENS, stream=True, stream_options={"include_usage": True}, **_asked(provider)
        )
        chunks = list(events)
        whole: Any = litellm.stream_chunk_builder(chunks)
        assert whole.choices[0].message.content
        assert whole.usage.completion_tokens > 0


def tools() -> str:
    """Has a call made, and gives its result back."""
    asked = {**_asked("openai"), "tools": [TOOL], "max_tokens": JSON_TOKENS, "parallel_tool_calls": False}
    first: Any = litellm.completion(messages=TURNS, tool_choice="required", **asked)
    message = first.choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    check_fits(json.loads(call.function.arguments))
    result = {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": RESULT}
    answer: Any = litellm.completion(messages=[*TURNS, message, result], **asked)
    assert answer.choices[0].message.content
    return "by provider openai: hosted_vllm drops additionalProperties, and the model makes up properties without end"


def json_schema() -> None:
    """Has answers written that fit a schema, by both providers."""
    for provider in PROVIDERS:
        answer: Any = litellm.completion(
            messages=TURNS, response_format=FORMAT, max_tokens=JSON_TOKENS, **_asked(provider)
        )
        check_fits(json.loads(answer.choices[0].message.content))


def cancel() -> str | None:
    """Leaves a stream and closes its connection."""

    def abort() -> None:
        events: Any = litellm.completion(
            messages=TURNS, max_tokens=LONG_TOKENS, stream=True, extra_body={"ignore_eos": True}, **_asked("openai")
        )
        for _, _ in zip(range(4), events, strict=False):
            pass
        events.completion_stream.close()

    return check_cancelled(abort)


if __name__ == "__main__":
    run("litellm", {"chat": chat, "stream": stream, "tools": tools, "JSON schema": json_schema, "cancel": cancel})
