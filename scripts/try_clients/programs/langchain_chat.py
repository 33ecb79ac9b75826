"""langchain-openai: its chat model with tools and structured output."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI

from scripts.try_clients.programs.harness import (
    FUNCTION,
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

TURNS: list[Any] = [SystemMessage("Be brief."), HumanMessage(QUESTION)]


def _model(max_tokens: int, **fields: Any) -> Any:
    made: Any = ChatOpenAI
    return made(base_url=URL, api_key="none", model=MODEL, max_retries=0, max_tokens=max_tokens, **fields)


def chat() -> None:
    """Asks."""
    assert _model(TOKENS).invoke(TURNS).content


def stream() -> None:
    """Reads a stream."""
    assert "".join(chunk.content for chunk in _model(TOKENS, stream_usage=True).stream(TURNS))


def tools() -> None:
    """Has a call made, and gives its result back."""
    model = _model(JSON_TOKENS)
    message = model.bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False).invoke(TURNS)
    (call,) = message.tool_calls
    assert call["name"] == "weather"
    check_fits(call["args"])
    answer = model.bind_tools([TOOL]).invoke([*TURNS, message, ToolMessage(RESULT, tool_call_id=call["id"])])
    assert answer.content


def json_schema() -> None:
    """Has answers written that fit a schema: by the form of the answer, and by a call."""
    schema = {"title": "weather", "description": FUNCTION["description"], **SCHEMA}
    for method in ("json_schema", "function_calling"):
        check_fits(_model(JSON_TOKENS).with_structured_output(schema, method=method).invoke(TURNS))


def cancel() -> str | None:
    """Closes a stream."""

    def abort() -> None:
        events = _model(LONG_TOKENS, extra_body={"ignore_eos": True}).stream(TURNS)
        for _, _ in zip(range(4), events, strict=False):
            pass
        events.close()

    return check_cancelled(abort)


if __name__ == "__main__":
    run(
        "langchain-openai",
        {"chat": chat, "stream": stream, "tools": tools, "JSON schema": json_schema, "cancel": cancel},
    )
