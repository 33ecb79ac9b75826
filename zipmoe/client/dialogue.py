"""Conversations as parameters of a request: messages, tools, tool calls, choices of the chat template."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool.

    Attributes:
        id: the call's id, as the router gave it.
        name: the tool's name.
        arguments: the arguments as JSON text.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`, as the chat template knows them.
        content: the text of the turn, or a tuple with the texts of its parts.
        reasoning: the reasoning before an assistant's answer.
        tool_calls: the tools that an assistant has called.
        tool_call_id: id of the call that a tool's message answers.
        name: name of the speaker or of the tool; most chat templates do not show it.
    """

    role: str
    content: str | tuple[str, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


class ToolUse(enum.Enum):
    """Whether the model may, must or must not call a tool."""

    NONE = "none"
    """The chat template gets no tools."""

    AUTO = "auto"
    """The model decides."""

    REQUIRED = "required"
    """The answer is a call of any tool."""

    NAMED = "named"
    """The answer is a call of the tool that is named."""


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation with tools, or with settings of the chat template.

    Attributes:
        messages: the turns, oldest first.
        tools: definitions of tools: `{"type": "function", "function": {"name", "description", "parameters"}}`.
        tool_use: whether the model may, must or must not call a tool.
        tool_name: the tool that has to be called, with `ToolUse.NAMED`.
        template: name of the chat template, where the checkpoint has several; empty for the model's choice.
        template_variables: further variables of the chat template, for example `{"enable_thinking": False}`.
        add_generation_prompt: whether the prompt ends with the beginning of an answer; None means yes, unless the last
            message is continued.
        continue_final_message: leaves the last message open, so that the answer continues it.
        one_call: demands exactly one call with `ToolUse.REQUIRED`; changes nothing with other choices.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_use: ToolUse = ToolUse.AUTO
    tool_name: str = ""
    template: str = ""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    one_call: bool = False

    def __len__(self) -> int:
        """Returns the number of messages."""
        return len(self.messages)
