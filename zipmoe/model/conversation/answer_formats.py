"""Finds the rows of the two tables that hold for a chat template, and makes the parser of an answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from zipmoe.errors import InvalidRequest
from zipmoe.model.conversation import harmony_channels
from zipmoe.model.conversation.answer_pieces import AnswerParser, OfferedTools, ParsersInTurn, PlainText
from zipmoe.model.conversation.call_formats import CALL_FORMATS, HERMES, CallFormat
from zipmoe.model.conversation.reasoning_formats import REASONING_FORMATS, ReasoningFormat, ReasoningParser
from zipmoe.model.text.call_forms import ReasoningForm
from zipmoe.model.text.tool_grammar import DemandedCalls, ToolSchema

_CHANNEL_REASONING = ReasoningForm(
    f"{harmony_channels.CHANNEL}analysis{harmony_channels.MESSAGE}",
    f"{harmony_channels.END}{harmony_channels.START}assistant",
    harmony_channels.MARKERS,
    gap=0,
)


@dataclass(frozen=True)
class AnswerFormats:
    """The formats of a model's answers.

    Attributes:
        reasoning: markers around reasoning; None if the model is not known to mark it, or marks it by channels.
        calls: format of tool calls; None if none is known.
    """

    reasoning: ReasoningFormat | None = None
    calls: CallFormat | None = None

    @property
    def reasoning_name(self) -> str:
        """Name of the row for reasoning; empty if there is none."""
        if self.reasoning is None:
            return self.calls.name if self.calls is not None and self.calls.has_channels else ""
        return self.reasoning.name

    @property
    def calls_name(self) -> str:
        """Name of the row for tool calls; empty if there is none."""
        return "" if self.calls is None else self.calls.name


def answer_formats(template: str, added_tokens: Collection[str]) -> AnswerFormats:
    """Finds the formats of a model.

    Args:
        template: source of the chat template.
        added_tokens: texts of the tokenizer's added tokens, special ones included.
    """

    def is_there(sign: str) -> bool:
        return sign in template or sign in added_tokens

    calls = next((row for row in CALL_FORMATS if all(map(is_there, row.signs))), None)
    if calls is not None and calls.has_channels:
        return AnswerFormats(None, calls)
    return AnswerFormats(next((row for row in REASONING_FORMATS if is_there(row.closing)), None), calls)


@dataclass(frozen=True)
class AnswerReading:
    """How the answer to one conversation is read.

    Attributes:
        formats: formats of the model's answers.
        begins_in_reasoning: whether the prompt ends with the marker that opens reasoning.
        tools: the tools that the request offers; without any, calls stay text.
    """

    formats: AnswerFormats = field(default_factory=AnswerFormats)
    begins_in_reasoning: bool = False
    tools: OfferedTools = field(default_factory=dict)

    @property
    def markers(self) -> frozenset[str]:
        """The markers that the parser needs to see, even if they are special tokens."""
        reasoning, calls = self.formats.reasoning, self._calls
        return frozenset(reasoning.markers if reasoning else ()) | frozenset(calls.markers if calls else ())

    @property
    def _calls(self) -> CallFormat | None:
        if self.tools:
            return self.formats.calls or HERMES
        calls = self.formats.calls
        return calls if calls is not None and calls.has_channels else None

    def parser(self) -> AnswerParser:
        """Makes a parser for the answer."""
        reasoning, calls = self.formats.reasoning, self._calls
        first = ReasoningParser(reasoning, begins_inside=self.begins_in_reasoning) if reasoning else None
        second = calls.parser(self.tools) if calls else None
        if first is not None and second is not None:
            return ParsersInTurn(first, second)
        return first or second or PlainText()

    def demanded_calls(self, names: Collection[str], *, several: bool) -> DemandedCalls:
        """Returns the answer that has to call tools, behind reasoning where the model is known to mark it.

        Args:
            names: tools that may be called, all of them offered.
            several: whether there may be more than one call.

        Raises:
            InvalidRequest: the format in which the model writes calls is not known.
        """
        calls, reasoning = self.formats.calls, self.formats.reasoning
        if calls is None:
            raise InvalidRequest(
                "tool_choice demands a call of a tool, but the model's chat template shows no format of calls",
                next_step="leave the choice to the model with tool_choice auto",
            )
        thoughts = _CHANNEL_REASONING if calls.has_channels else None
        if reasoning is not None:
            thoughts = ReasoningForm(
                reasoning.opening, reasoning.closing, reasoning.markers, begun=self.begins_in_reasoning
            )
        tools = tuple(ToolSchema(name, schema) for name, schema in self.tools.items() if name in names)
        return DemandedCalls(tools, calls.form, thoughts, several)


def shown_ids(markers: Collection[str], special_tokens: Mapping[str, int]) -> frozenset[int]:
    """Returns the ids of the special tokens whose names are markers."""
    return frozenset(special_tokens[marker] for marker in markers if marker in special_tokens)
