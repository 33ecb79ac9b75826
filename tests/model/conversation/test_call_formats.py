"""Every row of the table of tool calls: its calls are found, its text stays text, and cuts change nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.conversation.reading import ReadAnswer, read
from zipmoe.model.conversation.answer_pieces import AnswerParser, CallArguments, CallBegun
from zipmoe.model.conversation.call_formats import CALL_FORMATS, CallFormat

TOOLS: dict[str, dict[str, Any]] = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "stop": {},
}
ROWS = {row.name: row for row in CALL_FORMATS}
PARIS = ("weather", '{"city": "Paris"}')
HARD = json.dumps({"city": 'a "}]{[</tool_call> \\ <|call|>[TOOL_CALLS]\n', "deep": [{"x": [1, "}"]}]})
H = "<|channel|>{}<|message|>{}"


@dataclass(frozen=True)
class Told:
    """An answer, and what it says."""

    row: str
    answer: str
    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str = ""


def hermes(arguments: str, name: str = "weather") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def call(arguments: str, name: str = "weather") -> str:
    return f'{{"name": "{name}", "parameters": {arguments}}}'


CASES = [
    Told("hermes", "Hello <b>x</b> <tool", "Hello <b>x</b> <tool"),
    Told("hermes", hermes('{"city": "Paris"}'), calls=(PARIS,)),
    Told("hermes", f"So:\n{hermes(HARD)}\n{hermes('{}', 'stop')}\n", "So:", (("weather", HARD), ("stop", "{}"))),
    Told("hermes", '<tool_call>{"arguments": {"city": "Paris"}, "id": 3, "name": "weather"}</tool_call>',
         calls=(PARIS,)),
    Told("hermes", '<tool_call>{"name": "stop"}</tool_call> Done.', " Done.", (("stop", "{}"),)),
    Told("hermes", '<tool_call>{"name": "stop", "arguments": null}</tool_call>', calls=(("stop", "{}"),)),
    Told("hermes", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>',
         calls=(PARIS,)),
    Told("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Par', calls=(("weather", '{"city": "Par'),)),
    Told("hermes", '<tool_call>\n{"name": "wea', '<tool_call>\n{"name": "wea'),
    Told("hermes", "<tool_call>nothing</tool_call>", "<tool_call>nothing</tool_call>"),
    Told("hermes", '<tool_call>{"name": "stop", oops}</tool_call> x',
         '<tool_call>{"name": "stop", oops}</tool_call> x'),
    Told("hermes", hermes('{"city": "Paris"}').removesuffix("</tool_call>") + hermes("{}", "stop"),
         calls=(PARIS, ("stop", "{}"))),
    Told("hermes", "ends in space \n", "ends in space \n"),
    Told("mistral", "Hello [1] [TOOL", "Hello [1] [TOOL"),
    Told("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]', calls=(PARIS,)),
    Told(
        "mistral",
        f'Wait. [TOOL_CALLS][{{"name": "weather", "arguments": {HARD}}}, {{"name": "stop", "id": "x"}}]',
        "Wait.",
        (("weather", HARD), ("stop", "{}")),
    ),
    Told("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]stop[ARGS]{}',
         calls=(PARIS, ("stop", "{}"))),
    Told("mistral", '[TOOL_CALLS]weather[CALL_ID]abc123def[ARGS]{"city": "Paris"}', calls=(PARIS,)),
    Told("mistral", f"[TOOL_CALLS]weather{HARD}", calls=(("weather", HARD),)),
    Told("mistral", '[TOOL_CALLS] {"name": "weather", "arguments": {"city": "Paris"}} bye', " bye", (PARIS,)),
    Told("mistral", "[TOOL_CALLS]weath", "[TOOL_CALLS]weath"),
    Told("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {"city', calls=(("weather", '{"city'),)),
    Told("harmony", H.format("final", "Hello"), "Hello"),
    Told("harmony", "Hello", "Hello"),
    Told("harmony", " today", " today"),
    Told(
        "harmony",
        H.format("analysis", "Hm.") + "<|end|><|start|>assistant" + H.format("final", "Yes") + "<|return|>",
        "Yes",
        reasoning="Hm.",
    ),
    Told(
        "harmony",
        H.format("analysis", "a") + "<|start|>assistant" + H.format("analysis", "b") + "<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        calls=(PARIS,),
        reasoning="a\nb",
    ),
    Told("harmony", f" to=functions.weather<|channel|>commentary json<|message|>{HARD.replace('<|call|>', '')}",
         calls=(("weather", HARD.replace("<|call|>", "")),)),
    Told(
        "harmony",
        H.format("commentary", "I look.") + "<|end|><|start|>assistant"
        + H.format("commentary to=functions.stop", "") + "<|call|><|start|>assistant"
        + H.format("commentary to=functions.weather", '{"city": "Paris"}') + "<|call|>",
        "I look.",
        (("stop", "{}"), PARIS),
    ),
    Told("harmony", "<|channel|>analysis", ""),
    Told("harmony", H.format("analysis", "cut in the mid"), reasoning="cut in the mid"),
    Told("harmony", H.format("analysis", "x") + "<|end|><|start|>assistant<|channel|>fin", reasoning="x"),
    Told("llama", "Hello {x}", "Hello {x}"),
    Told("llama", call('{"city": "Paris"}'), calls=(PARIS,)),
    Told("llama", "<|python_tag|>" + call(HARD) + "; " + call("{}", "stop"), calls=(("weather", HARD), ("stop", "{}"))),
    Told("llama", call('{"city": "Paris"}', "Bob"), call('{"city": "Paris"}', "Bob")),
    Told("llama", '{"type": "function", "name": "stop", "parameters": {}}', calls=(("stop", "{}"),)),
    Told("llama", '{"a": [1, 2]} is JSON', '{"a": [1, 2]} is JSON'),
    Told("llama", call("{}", "stop") + " and text", " and text", (("stop", "{}"),)),
    Told("llama", '{"name": "sto', '{"name": "sto'),
    Told("llama", "\n ", "\n "),
    Told("xml", "a <b> <function", "a <b> <function"),
    Told(
        "xml",
        "So:\n<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call>\n<function=stop>\n</function>\n</tool_call>",
        "So:",
        (("weather", '{"city": "Paris", "days": 3}'), ("stop", "{}")),
    ),
    Told(
        "xml",
        "<tool_call><function=weather><parameter=city>12<parameter=more>[1, x]</function></tool_call>",
        calls=(("weather", '{"city": "12", "more": "[1, x]"}'),),
    ),
    Told("xml", "<tool_call>\n<function=wea", "<tool_call>\n<function=wea"),
]  # fmt: skip


def parser(row: str) -> AnswerParser:
    return ROWS[row].parser(TOOLS)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.row}-{index}" for index, case in enumerate(CASES)])
def test_an_answer_is_read_in_the_format_of_its_row(case: Told) -> None:
    expected = ReadAnswer(case.text, case.reasoning, list(case.calls))
    assert read(lambda: parser(case.row), case.answer) == expected
    assert read(lambda: parser(case.row), case.answer, range(len(case.answer))) == expected


def test_every_row_has_cases() -> None:
    assert {case.row for case in CASES if case.calls} == ROWS.keys()


@given(data=st.data(), case=st.sampled_from(CASES))
def test_any_split_of_the_stream_gives_the_same_calls(data: st.DataObject, case: Told) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(case.answer))))
    assert read(lambda: parser(case.row), case.answer, cuts) == read(lambda: parser(case.row), case.answer)


FRAGMENTS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<function=weather>", "</function>", "<parameter=city>", "</parameter>",
        "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>",
        "analysis", "commentary to=functions.weather", "assistant", "<|python_tag|>", "<think>", "</think>",
        '{"name": "weather", "arguments": {"city": "x"}}', '{"name": "stop"', '"arguments": ', '"', "\\", "{", "}", "[",
        "]", ",", ":", ";", " ", "\n", "null", "1.5e3", "é🎉", "<", "|", "text",
    ]
)  # fmt: skip


@given(data=st.data(), fragments=st.lists(FRAGMENTS, max_size=12), row=st.sampled_from(sorted(ROWS)))
def test_any_split_of_anything_gives_the_same_answer(data: st.DataObject, fragments: list[str], row: str) -> None:
    answer = "".join(fragments)
    cuts = data.draw(st.lists(st.integers(0, len(answer))))
    whole = read(lambda: parser(row), answer)
    assert read(lambda: parser(row), answer, cuts) == whole
    assert read(lambda: parser(row), answer, range(len(answer))) == whole


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(arguments=st.dictionaries(st.text(max_size=5), JSON, max_size=4), indent=st.none() | st.just(2))
@pytest.mark.parametrize("row", ["hermes", "mistral", "llama"])
def test_arguments_of_any_json_arrive_as_they_were_written(
    row: str, arguments: dict[str, Any], indent: int | None
) -> None:
    written = json.dumps(arguments, ensure_ascii=False, indent=indent)
    answer = {
        "hermes": hermes(written),
        "mistral": f'[TOOL_CALLS][{{"name": "weather", "arguments": {written}}}]',
        "llama": call(written),
    }[row]
    assert read(lambda: parser(row), answer, range(len(answer))) == ReadAnswer(calls=[("weather", written)])


@pytest.mark.parametrize("row", [row for row in CALL_FORMATS if row.name in ("hermes", "mistral", "llama")])
def test_arguments_stream_while_they_are_written(row: CallFormat) -> None:
    begin = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS] [", "llama": ""}[row.name]
    reader = row.parser(TOOLS)
    pieces = reader.feed(begin + '{"name": "weather", "arguments": {"city": "Pa')
    assert pieces == [CallBegun(0, "weather"), CallArguments(0, '{"city": "Pa')]
    assert reader.feed("ris") == [CallArguments(0, "ris")]
