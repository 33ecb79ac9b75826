"""Anthropic's package for Python: messages."""

from __future__ import annotations

import json
from typing import Any

import anthropic

from scripts.try_clients.programs.harness import (
    FUNCTION,
    JSON_TOKENS,
    LONG_TOKENS,
    MODEL,
    QUESTION,
    RESULT,
    SCHEMA,
    TOKENS,
    URL,
    check_cancelled,
    check_fits,
    run,
)

CLIENT = anthropic.Anthropic(base_url=URL.removesuffix("/v1"), api_key="none", max_retries=0)
TURNS: list[Any] = [{"role": "user", "content": QUESTION}]
ASKED: dict[str, Any] = {"model": MODEL, "system": "Be brief.", "max_tokens": TOKENS}
TOOLS: list[Any] = [{"name": "weather", "description": FUNCTION["description"], "input_schema": SCHEMA}]


def _text(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def chat() -> None:
    """Asks."""
    assert _text(CLIENT.messages.create(messages=TURNS, **ASKED))


def stream() -> None:
    """Reads a stream by the client's helper."""
    with CLIENT.messages.stream(messages=TURNS, **ASKED) as events:
        deltas = "".join(events.text_stream)
        final = events.get_final_message()
    assert deltas and deltas == _text(final)
    assert final.usage.output_tokens > 0


def tools() -> None:
    """Has a call made, whole and streamed, and gives its result back."""
    asked: dict[str, Any] = {**ASKED, "max_tokens": JSON_TOKENS, "tools": TOOLS}
    demanded: Any = {"type": "any", "disable_parallel_tool_use": True}
    message = CLIENT.messages.create(messages=TURNS, tool_choice=demanded, **asked)
    with CLIENT.messages.stream(messages=TURNS, tool_choice=demanded, **asked) as events:
        streamed = events.get_final_message()
    for made in (message, streamed):
        assert made.stop_reason == "tool_use", made.stop_reason
        (call,) = (block for block in made.content if block.type == "tool_use")
        assert call.name == "weather"
        check_fits(call.input)
    (call,) = (block for block in message.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
    turns: list[Any] = [
        *TURNS,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    assert _text(CLIENT.messages.create(messages=turns, **asked))


def json_schema() -> None:
    """Has an answer written that fits a schema."""
    config: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
    message = CLIENT.messages.create(messages=TURNS, **{**ASKED, "max_tokens": JSON_TOKENS}, output_config=config)
    check_fits(json.loads(_text(message)))


def cancel() -> str | None:
    """Closes a stream."""

    def abort() -> None:
        asked = {**ASKED, "max_tokens": LONG_TOKENS, "extra_body": {"ignore_eos": True}}
        with CLIENT.messages.stream(messages=TURNS, **asked) as events:
            for _, _ in zip(range(4), events.text_stream, strict=False):
                pass

    return check_cancelled(abort)


if __name__ == "__main__":
    run("anthropic", {"chat": chat, "stream": stream, "tools": tools, "JSON schema": json_schema, "cancel": cancel})
