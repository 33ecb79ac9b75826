"""OpenAI's package for Python: chat completions, and its helpers for streams and schemas."""

from __future__ import annotations

import json
from typing import Any

import openai

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

CLIENT = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
TURNS: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}


def chat() -> None:
    """Asks, and compares with the same question as a response."""
    answer = CLIENT.chat.completions.create(model=MODEL, messages=TURNS, max_completion_tokens=TOKENS, temperature=0)
    assert answer.choices[0].message.content
    response = CLIENT.responses.create(model=MODEL, input=TURNS, max_output_tokens=TOKENS, temperature=0)
    assert response.output_text == answer.choices[0].message.content, "a response has another text"


def stream() -> None:
    """Reads a stream by the client's helper."""
    with CLIENT.chat.completions.stream(
        model=MODEL, messages=TURNS, max_tokens=TOKENS, stream_options={"include_usage": True}
    ) as events:
        deltas = "".join(event.delta for event in events if event.type == "content.delta")
        final = events.current_completion_snapshot  # the final one is an error where the limit ended it
    assert deltas and deltas == final.choices[0].message.content
    assert final.usage is not None and final.usage.completion_tokens > 0


def tools() -> None:
    """Has a call made, whole and streamed, and gives its result back."""
    asked: dict[str, Any] = {"model": MODEL, "tools": [TOOL], "max_tokens": JSON_TOKENS, "parallel_tool_calls": False}
    message = CLIENT.chat.completions.create(messages=TURNS, tool_choice="required", **asked).choices[0].message
    with CLIENT.chat.completions.stream(messages=TURNS, tool_choice="required", **asked) as events:
        streamed = events.get_final_completion().choices[0].message
    for made in (message, streamed):
        (call,) = made.tool_calls or []
        assert call.type == "function" and call.function.name == "weather"
        check_fits(json.loads(call.function.arguments))
    (call,) = message.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    answer = CLIENT.chat.completions.create(messages=[*TURNS, message, result], **asked)
    assert answer.choices[0].message.content


def json_schema() -> None:
    """Has an answer written that fits a schema."""
    answer = CLIENT.chat.completions.create(model=MODEL, messages=TURNS, response_format=FORMAT, max_tokens=JSON_TOKENS)
    check_fits(json.loads(answer.choices[0].message.content or ""))


def cancel() -> str | None:
    """Closes a stream."""

    def abort() -> None:
        events = CLIENT.chat.completions.create(
            model=MODEL, messages=TURNS, max_tokens=LONG_TOKENS, stream=True, extra_body={"ignore_eos": True}
        )
        for _, _ in zip(range(4), events, strict=False):
            pass
        events.close()

    return check_cancelled(abort)


if __name__ == "__main__":
    run("openai", {"chat": chat, "stream": stream, "tools": tools, "JSON schema": json_schema, "cancel": cancel})
