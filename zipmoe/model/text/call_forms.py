"""The text of tool calls around names and arguments, one form for each format in which models write calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class CallForm:
    """The text of tool calls around names and arguments. Names of special tokens in it stand for these tokens.

    A call is `before`, the name, `between`, the arguments, `after`. The answer is one of `openings`, the calls,
    `closing`.

    Attributes:
        openings: texts of which one stands before the first call.
        separator: text between two calls; None allows a single call.
        quoted_name: whether the name stands between quotation marks, as in JSON.
        elements: markers around each argument, if the arguments are elements and not a JSON object.
    """

    before: str
    between: str
    after: str
    openings: tuple[str, ...] = ("",)
    closing: str = ""
    separator: str | None = None
    quoted_name: bool = True
    elements: ElementForm | None = None


@dataclass(frozen=True)
class ElementForm:
    """The text of an argument: `opening`, its key, `key_end`, its value, `closing`.

    Attributes:
        markers: texts that no value may contain.
    """

    opening: str
    key_end: str
    closing: str
    markers: tuple[str, ...]


@dataclass(frozen=True)
class ReasoningForm:
    """The text around reasoning before the first call. Names of special tokens in it stand for these tokens.

    Attributes:
        opening: text before the reasoning.
        closing: text behind it.
        markers: texts that reasoning may not contain.
        gap: most line feeds between `closing` and the calls.
        begun: whether the prompt ends with the opening, so that the answer has to close the reasoning.
    """

    opening: str
    closing: str
    markers: tuple[str, ...]
    gap: int = 2
    begun: bool = False


HERMES: Final = CallForm('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", separator="\n")
LLAMA: Final = CallForm('{"name": "', '", "parameters": ', "}", separator="; ")
MISTRAL_LIST: Final = CallForm(
    '{"name": "', '", "arguments": ', "}", ("[TOOL_CALLS][", "[TOOL_CALLS] ["), "]", separator=", "
)
MISTRAL_NAMES: Final = CallForm("[TOOL_CALLS]", "[ARGS]", "", separator="", quoted_name=False)
HARMONY: Final = CallForm("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "", quoted_name=False)
"""A call ends the answer: the marker behind it is one of the model's end tokens."""

XML: Final = CallForm(
    "<tool_call>\n<function=",
    ">\n",
    "</function>\n</tool_call>",
    separator="\n",
    quoted_name=False,
    elements=ElementForm(
        "<parameter=",
        ">\n",
        "\n</parameter>\n",
        ("<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>"),
    ),
)
