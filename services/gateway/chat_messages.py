"""Messages, tools and settings of the chat template in bodies of `/v1/chat/completions`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from zipmoe.client import Chat, Message, ToolCall, ToolUse

# OpenAI's newer models call the role of instructions "developer"; most chat templates do not know it.
_ROLES: Final = {"developer": "system"}

_USES: Final = {"none": ToolUse.NONE, "auto": ToolUse.AUTO, "required": ToolUse.REQUIRED}


class TextPart(BaseModel):
    """A text part of a message."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str
    cache_control: Any = None
    annotations: Any = None

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, value: object) -> object:
        kind = value.get("type", "text") if isinstance(value, dict) else "text"
        if kind != "text":
            raise ValueError(f"not supported: parts of type {str(kind)[:32]!r}; only text is served, of any model")
        return value


class CalledFunction(BaseModel):
    """The function of a call: its name, and its arguments as JSON text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    arguments: str | dict[str, Any] = ""


class MessageCall(BaseModel):
    """A call of a tool in a message of the assistant."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None

    @property
    def call(self) -> ToolCall:
        """The call as the router's client takes it."""
        written = self.function.arguments
        text = written if isinstance(written, str) else json.dumps(written, ensure_ascii=False)
        return ToolCall(self.id, self.function.name, text)


class ChatMessage(BaseModel):
    """One turn of a conversation.

    Fields of answers are taken back, so that a client can send an answer unchanged.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | list[TextPart] | None, Field(validate_default=True)] = None
    name: str | None = None
    tool_calls: list[MessageCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    cache_control: Any = None
    refusal: None = None
    function_call: None = None
    audio: None = None
    annotations: Annotated[list[Any] | None, Field(max_length=0)] = None

    @field_validator("content")
    @classmethod
    def _has_content(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and info.data.get("role") != "assistant":
            raise ValueError("only a message of the assistant may have no content")
        return content

    @field_validator("tool_calls")
    @classmethod
    def _calls_as_assistant(cls, calls: Any, info: ValidationInfo) -> Any:
        if calls and info.data.get("role") != "assistant":
            raise ValueError("only a message of the assistant may call tools")
        return calls

    @property
    def message(self) -> Message:
        """The turn as the router's client takes it."""
        content = self.content or ""
        return Message(
            _ROLES.get(self.role, self.role),
            content if isinstance(content, str) else tuple(part.text for part in content),
            self.reasoning_content or self.reasoning or "",
            tuple(call.call for call in self.tool_calls or ()),
            self.tool_call_id or "",
            self.name or "",
        )


class ChatSettings(BaseModel):
    """Fields of a chat that reach the chat template: messages, tools and variables.

    `chat_template` names one of the checkpoint's own templates. `enable_thinking` and `chat_template_kwargs` are
    extensions, named as other servers name them.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    enable_thinking: bool | None = None

    @field_validator("tools")
    @classmethod
    def _functions(cls, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for index, tool in enumerate(tools or ()):
            kind = tool.get("type")
            if kind != "function":
                raise ValueError(
                    f"not supported: tool {index} is of type {str(kind)[:32]!r}; only functions are served"
                )
            function = tool.get("function")
            if not (isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]):
                raise ValueError(f"tool {index} has no function with a name")
            if not isinstance(function.get("parameters"), dict | None):
                raise ValueError(f"the parameters of tool {index} are no JSON schema")
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _known_choice(cls, choice: Any) -> Any:
        if choice is None or (isinstance(choice, str) and choice in _USES) or _named(choice):
            return choice
        raise ValueError(f"not supported but as one of {', '.join(_USES)}, or as an object that names a function")

    @property
    def chat(self) -> Chat:
        """The conversation as the router's client takes it."""
        variables: dict[str, Any] = {}
        if self.reasoning_effort == "none":
            variables["enable_thinking"] = False
        elif self.reasoning_effort is not None:
            variables["reasoning_effort"] = self.reasoning_effort
        if self.enable_thinking is not None:
            variables["enable_thinking"] = self.enable_thinking
        named = _named(self.tool_choice)
        return Chat(
            [message.message for message in self.messages],
            self.tools or (),
            ToolUse.NAMED if named else _USES[self.tool_choice or "auto"],
            named,
            self.chat_template or "",
            {**variables, **(self.chat_template_kwargs or {})},
        )


def _named(choice: Any) -> str:
    """Returns the name of the function that a `tool_choice` demands; empty if it demands none by name."""
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else ""
