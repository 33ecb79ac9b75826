"""Every row of the table of reasoning markers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.conversation.reading import ReadAnswer, read
from zipmoe.model.conversation.answer_formats import AnswerReading, answer_formats
from zipmoe.model.conversation.answer_pieces import AnswerParser, ReasoningPiece, TextPiece
from zipmoe.model.conversation.reasoning_formats import REASONING_FORMATS, ReasoningFormat, ReasoningParser

TOOLS = {"stop": {}}
ROWS = st.sampled_from(REASONING_FORMATS)


def parser(row: ReasoningFormat, inside: bool = False) -> AnswerParser:
    return ReasoningParser(row, begins_inside=inside)


@pytest.mark.parametrize("row", REASONING_FORMATS, ids=lambda row: row.name)
@pytest.mark.parametrize(
    ("answer", "inside", "text", "reasoning"),
    [
        ("OHm.\nYes.C\n\nHello", False, "Hello", "Hm.\nYes."),
        ("\nO\nHm.\n\nC\n\n  Hello", False, "  Hello", "Hm."),
        ("Hm.\nC\nHello", True, "Hello", "Hm."),
        ("O\nHm.CHello", True, "Hello", "Hm."),
        ("Ocut in the mid", False, "", "cut in the mid"),
        ("cut in the mid", True, "", "cut in the mid"),
        ("Hello, O is a marker, C too", False, "Hello, O is a marker, C too", ""),
        ("OaCb O c C d", False, "b O c C d", "a"),
        ("O\n\nC\n\nHello", False, "Hello", ""),
        ("  Hello", False, "  Hello", ""),
        ("  ", False, "  ", ""),
        ("", False, "", ""),
    ],
)
def test_reasoning_is_separated_from_the_text(
    row: ReasoningFormat, answer: str, inside: bool, text: str, reasoning: str
) -> None:
    def marked(written: str) -> str:
        return written.replace("O", row.opening).replace("C", row.closing)

    expected = ReadAnswer(marked(text), marked(reasoning))
    assert read(lambda: parser(row, inside), marked(answer)) == expected
    assert read(lambda: parser(row, inside), marked(answer), range(200)) == expected


@pytest.mark.parametrize("row", REASONING_FORMATS, ids=lambda row: row.name)
def test_a_cut_inside_the_closing_marker_leaks_nothing_into_the_text(row: ReasoningFormat) -> None:
    for length in range(1, len(row.closing)):
        assert read(lambda: parser(row), f"{row.opening}Hm.{row.closing[:length]}").text == ""


@given(data=st.data(), row=ROWS, inside=st.booleans(), places=st.lists(st.sampled_from("OC<x \n/[|t"), max_size=14))
def test_any_split_gives_the_same_reasoning(
    data: st.DataObject, row: ReasoningFormat, inside: bool, places: list[str]
) -> None:
    answer = "".join({"O": row.opening, "C": row.closing}.get(place, place) for place in places)
    cuts = data.draw(st.lists(st.integers(0, len(answer))))
    whole = read(lambda: parser(row, inside), answer)
    assert read(lambda: parser(row, inside), answer, cuts) == whole
    assert read(lambda: parser(row, inside), answer, range(len(answer))) == whole


def test_reasoning_streams_while_it_is_written() -> None:
    reader = parser(REASONING_FORMATS[0])
    assert reader.feed("<think>\nHm, ye") == [ReasoningPiece("Hm, ye")]
    assert reader.feed("s.</thi") == [ReasoningPiece("s.")]
    assert reader.feed("nk>\n\nA") == [TextPiece("A")]


def test_calls_are_found_after_the_reasoning_and_not_in_it() -> None:
    formats = answer_formats("<think></think><tool_call>", ())
    call = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    answer = f"<think>\n{call}\n</think>\n\nSo: {call}"
    reading = AnswerReading(formats, tools=TOOLS)
    assert read(reading.parser, answer) == ReadAnswer("So:", call, [("stop", "{}")])
    assert read(reading.parser, answer, range(len(answer))) == ReadAnswer("So:", call, [("stop", "{}")])


def test_without_tools_a_call_is_text() -> None:
    formats = answer_formats("<tool_call>", ())
    call = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    assert read(AnswerReading(formats).parser, call) == ReadAnswer(call)


def test_tools_of_a_template_that_shows_no_format_are_read_as_hermes_writes_them() -> None:
    reading = AnswerReading(answer_formats("{{ messages }}", ()), tools=TOOLS)
    assert read(reading.parser, '<tool_call>{"name": "stop"}</tool_call>').calls == [("stop", "{}")]


@pytest.mark.parametrize(
    ("template", "tokens", "reasoning", "calls"),
    [
        ("{{ messages }}", (), "", ""),
        ("... <tool_call> ... '</think>' ...", (), "think", "hermes"),
        ("...", ("<think>", "</think>"), "think", ""),
        ("<tool_call>\n<function=x>", (), "", "xml"),
        ("[AVAILABLE_TOOLS]", ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"), "mistral", "mistral"),
        ("<|start|>assistant<|channel|>final<|message|>", (), "harmony", "harmony"),
        ("<|start_header_id|> ... {\"name\": f, \"parameters\": d}", (), "", "llama"),
        ("<|start_header_id|>", ("<|python_tag|>",), "", "llama"),
        ("<|START_THINKING|><|END_THINKING|>", (), "command", ""),
        ("<seed:think></seed:think>", (), "seed", ""),
    ],
)  # fmt: skip
def test_the_rows_of_a_model_are_found_from_its_template_and_tokens(
    template: str, tokens: tuple[str, ...], reasoning: str, calls: str
) -> None:
    found = answer_formats(template, tokens)
    assert (found.reasoning_name, found.calls_name) == (reasoning, calls)
