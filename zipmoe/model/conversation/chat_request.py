"""A conversation as the chat template gets it: turns, tools, variables; and its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zipmoe.model.conversation.answer_formats import AnswerReading

Turn = Mapping[str, Any]
"""A turn in the form that chat templates know: `role`, `content` (text, or parts), `tool_calls` and so on."""


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to render.

    Attributes:
        turns: the turns, oldest first.
        tools: definitions of tools, as chat templates take them; empty for none.
        template: name of the chat template; empty for the model's choice.
        variables: further variables of the chat template.
        opens_answer: whether the prompt ends with the beginning of an answer.
        continues: whether the last turn stays open, so that the answer continues it; excludes `opens_answer`.
    """

    turns: Sequence[Turn]
    tools: Sequence[Mapping[str, Any]] = ()
    template: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)
    opens_answer: bool = True
    continues: bool = False


@dataclass(frozen=True)
class ChatChanges:
    """Changes that were made to a conversation so that it could be rendered, or so that it means no more than it says.

    Attributes:
        system_merged: the system messages were put before the first user turn, since the template refuses them.
        broken_tokens: control tokens in the contents of users and tools, which were broken up and so stay text.
        tools_unseen: the template does not show tools to the model.
    """

    system_merged: bool = False
    broken_tokens: tuple[str, ...] = ()
    tools_unseen: bool = False


@dataclass(frozen=True)
class RenderedChat:
    """The prompt of a conversation, and how its answer is read."""

    token_ids: tuple[int, ...]
    changes: ChatChanges = field(default_factory=ChatChanges)
    reading: AnswerReading = field(default_factory=AnswerReading)
