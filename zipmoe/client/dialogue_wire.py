"""Converts conversations into messages of protos/zipmoe/v1/generation.proto."""

from __future__ import annotations

import json
from typing import Final

from zipmoe.client.dialogue import ChatPrompt, Message, ToolCall, ToolUse
from zipmoe.errors import InvalidRequest
from zipmoe.v1 import generation_pb2 as pb

_CHOICES: Final = {
    ToolUse.NONE: pb.TOOL_CHOICE_NONE,
    ToolUse.AUTO: pb.TOOL_CHOICE_AUTO,
    ToolUse.REQUIRED: pb.TOOL_CHOICE_REQUIRED,
    ToolUse.NAMED: pb.TOOL_CHOICE_NAMED,
}


def conversation_message(chat: ChatPrompt) -> pb.Conversation:
    """Converts a conversation.

    Raises:
        InvalidRequest: a value cannot be sent.
    """
    try:
        message = pb.Conversation(
            messages=[_message(message) for message in chat.messages],
            tools_json=[json.dumps(tool, ensure_ascii=False) for tool in chat.tools],
            tool_choice=None if chat.tool_use is ToolUse.AUTO else _CHOICES[chat.tool_use],
            tool_name=chat.tool_name,
            template_name=chat.template,
            template_variables_json=_variables(chat),
            continue_final_message=chat.continue_final_message,
            one_tool_call=chat.one_call,
        )
        if chat.add_generation_prompt is not None:
            message.add_generation_prompt = chat.add_generation_prompt
        return message
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"the prompt cannot be sent: {error}") from error


def _variables(chat: ChatPrompt) -> str:
    variables = dict(chat.template_variables)
    return json.dumps(variables, ensure_ascii=False, allow_nan=False) if variables else ""


def _message(message: Message) -> pb.ChatMessage:
    content = message.content
    return pb.ChatMessage(
        role=message.role,
        content=content if isinstance(content, str) else "",
        parts=() if isinstance(content, str) else content,
        reasoning=message.reasoning,
        tool_calls=[_call(call) for call in message.tool_calls],
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _call(call: ToolCall) -> pb.ToolCall:
    return pb.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments)
