"""Formats in which models write tool calls, as a table: how a format is recognised, and its parser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from zipmoe.model.conversation import harmony_channels, hermes_calls, llama_calls, mistral_calls, xml_calls
from zipmoe.model.conversation.answer_pieces import AnswerParser, OfferedTools
from zipmoe.model.conversation.harmony_channels import HarmonyChannels
from zipmoe.model.conversation.hermes_calls import HermesCalls
from zipmoe.model.conversation.llama_calls import LlamaCalls
from zipmoe.model.conversation.mistral_calls import MistralCalls
from zipmoe.model.conversation.xml_calls import XmlCalls
from zipmoe.model.text import call_forms
from zipmoe.model.text.call_forms import CallForm


@dataclass(frozen=True)
class CallFormat:
    """A format of tool calls.

    Attributes:
        name: name of the row.
        signs: texts of which each stands in the chat template or is an added token of the tokenizer.
        markers: markers that a parser needs to see, which are special tokens in some tokenizers.
        parser: makes a parser for an answer, from the tools that the request offers.
        form: the text of a call, for answers that have to be calls.
        has_channels: whether the parser also separates reasoning, and is needed without tools, too.
    """

    name: str
    signs: tuple[str, ...]
    markers: tuple[str, ...]
    parser: Callable[[OfferedTools], AnswerParser]
    form: CallForm
    has_channels: bool = False


def _without_names(make: Callable[[], AnswerParser]) -> Callable[[OfferedTools], AnswerParser]:
    return lambda tools: make()


HERMES: Final = CallFormat(
    "hermes",
    ("<tool_call>",),
    (hermes_calls.OPENING, hermes_calls.CLOSING),
    _without_names(HermesCalls),
    call_forms.HERMES,
)
_MISTRAL_MARKERS: Final = (mistral_calls.CALLS, mistral_calls.ID, mistral_calls.ARGUMENTS)

#: The first row of which all signs are there holds for a model.
CALL_FORMATS: Final = (
    CallFormat(
        "harmony",
        (harmony_channels.CHANNEL, harmony_channels.MESSAGE),
        harmony_channels.MARKERS,
        _without_names(HarmonyChannels),
        call_forms.HARMONY,
        has_channels=True,
    ),
    CallFormat(
        "mistral",
        (mistral_calls.CALLS, mistral_calls.ARGUMENTS),
        _MISTRAL_MARKERS,
        _without_names(MistralCalls),
        call_forms.MISTRAL_NAMES,
    ),
    CallFormat(
        "mistral", (mistral_calls.CALLS,), _MISTRAL_MARKERS, _without_names(MistralCalls), call_forms.MISTRAL_LIST
    ),
    CallFormat("xml", ("<tool_call>", "<function="), xml_calls.MARKERS, XmlCalls, call_forms.XML),
    HERMES,
    *(
        CallFormat("llama", ("<|start_header_id|>", sign), (llama_calls.PYTHON_TAG,), LlamaCalls, call_forms.LLAMA)
        for sign in ('"parameters"', llama_calls.PYTHON_TAG)
    ),
)
