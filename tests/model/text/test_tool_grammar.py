"""Answers that have to be tool calls: their grammar allows calls alone, and the parser of the format reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.model.conversation.reading import ReadAnswer, read
from tests.model.conversation.templates import write_fixture
from zipmoe.errors import InvalidRequest
from zipmoe.model.conversation.answer_formats import AnswerFormats, AnswerReading
from zipmoe.model.conversation.call_formats import CALL_FORMATS
from zipmoe.model.conversation.reasoning_formats import REASONING_FORMATS
from zipmoe.model.text.grammar import Grammar, GrammarProgress, GrammarVocabulary
from zipmoe.model.text.grammar_source import GrammarSource
from zipmoe.model.text.grammar_trial import compile_grammar
from zipmoe.model.text.tokenizer import Tokenizer
from zipmoe.model.text.tool_grammar import tool_calls
from zipmoe.services.router.engine.grammars import try_grammar

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/name"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "note": {"type": "string", "maxLength": 3},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"name": {"enum": ["Rome", "Paris"]}},
    "uniqueItems": True,  # a keyword that llguidance does not know
}
TOOLS: dict[str, Mapping[str, Any]] = {"weather": WEATHER, "stop": {}}
ROME = {"city": "Rome", "days": 2}
END_OF = {"harmony": "<|call|>"}
"""Tokens that end an answer, where it is not the fixture's end-of-sequence token."""

THINK, *_ = REASONING_FORMATS


@dataclass(frozen=True)
class Form:
    """A row of the table of call formats, on a tokenizer of a fixture."""

    row: int
    fixture: str
    call: str
    joint: str | None
    opening: str = ""
    closing: str = ""
    thinks: bool = False

    def written(self, *calls: tuple[str, Any]) -> str:
        """Returns calls as a model writes them."""
        one = [self.call.replace("NAME", name).replace("ARGUMENTS", self.arguments(value)) for name, value in calls]
        return self.opening + (self.joint or "").join(one) + self.closing

    def arguments(self, value: Mapping[str, Any]) -> str:
        if CALL_FORMATS[self.row].name != "xml":
            return json.dumps(value)
        # Strings of the type `string` as they are; the city, which is an enumeration, as JSON.
        texts = {key: each if key in ("unit", "note") else json.dumps(each) for key, each in value.items()}
        return "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())


FORMS = {
    "harmony": Form(
        0, "harmony", "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>ARGUMENTS", None
    ),
    "mistral names": Form(1, "mistral", "[TOOL_CALLS]NAME[ARGS]ARGUMENTS", ""),
    "mistral list": Form(2, "mistral", '{"name": "NAME", "arguments": ARGUMENTS}', ", ", "[TOOL_CALLS] [", "]"),
    "xml": Form(3, "chatml", "<tool_call>\n<function=NAME>\nARGUMENTS</function>\n</tool_call>", "\n", thinks=True),
    "xml, plain markers": Form(
        3, "deepseek", "<tool_call>\n<function=NAME>\nARGUMENTS</function>\n</tool_call>", "\n", thinks=True
    ),
    "hermes": Form(
        4, "chatml", '<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>', "\n", thinks=True
    ),
    "hermes, plain markers": Form(
        4, "llama", '<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>', "\n", thinks=True
    ),
    "llama": Form(5, "llama", '{"name": "NAME", "parameters": ARGUMENTS}', "; "),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, GrammarVocabulary]]:
    made = {}
    for fixture in {form.fixture for form in FORMS.values()}:
        tokenizer = write_fixture(fixture, tmp_path_factory.mktemp(fixture))
        eos = int(tokenizer.backend.convert_tokens_to_ids(END_OF.get(fixture, tokenizer.backend.eos_token)))
        made[fixture] = tokenizer, GrammarVocabulary(tokenizer, len(tokenizer.backend), {eos})
    return made


class DemandedForm:
    """A form with its tokenizer, and the reading of its answers."""

    def __init__(self, form: Form, made: tuple[Tokenizer, GrammarVocabulary], *, begun: bool = False) -> None:
        self.form = form
        self.tokenizer, self.vocabulary = made
        formats = AnswerFormats(THINK if form.thinks else None, CALL_FORMATS[form.row])
        self.reading = AnswerReading(formats, begun, TOOLS)

    def source(self, *names: str, several: bool = True) -> GrammarSource:
        demanded = self.reading.demanded_calls(names or tuple(TOOLS), several=several)
        return tool_calls(demanded, self.vocabulary.special_tokens)

    def fits(self, text: str, source: GrammarSource | None = None) -> bool:
        """Whether the tokens of a text are allowed one by one, and then the end.

        They are not those of the tokenizer itself, which may put a blank before each text.
        """
        matcher = Grammar(source or self.source(), self.vocabulary).matcher()
        ids = self.vocabulary.tokenizer.tokenize_str(text, parse_special=True)
        return bool(matcher.consume_tokens(ids)) and bool(matcher.is_accepting())

    def read(self, text: str) -> ReadAnswer:
        return read(self.reading.parser, text)


@pytest.fixture(params=FORMS)
def case(request: pytest.FixtureRequest, tokenizers: dict[str, tuple[Tokenizer, GrammarVocabulary]]) -> DemandedForm:
    form = FORMS[request.param]
    return DemandedForm(form, tokenizers[form.fixture])


def test_the_grammar_of_a_format_allows_its_calls_and_nothing_else(case: DemandedForm) -> None:
    form, fits = case.form, case.fits
    assert fits(form.written(("weather", ROME)))
    assert fits(form.written(("weather", {"city": "Rome", "unit": "F", "days": 2, "note": "a b"})))
    assert fits(form.written(("stop", {})))
    assert not fits(form.written(("weather", {"city": "Rome"}))), "a required argument is missing"
    assert not fits(form.written(("weather", {"city": "Oslo", "days": 2})))
    assert not fits(form.written(("weather", {"city": "Rome", "days": 8})))
    assert not fits(form.written(("stop", {"now": True})))
    assert not fits(form.written(("other", {})))
    assert not fits("Certainly!")
    assert not fits("")


def test_one_call_or_several_as_the_request_demands(case: DemandedForm) -> None:
    two = case.form.written(("stop", {}), ("weather", ROME))
    assert case.fits(two) == (case.form.joint is not None)
    assert not case.fits(two, case.source(several=False))
    assert case.fits(case.form.written(("stop", {})), case.source(several=False))
    named = case.source("stop", several=False)
    assert case.fits(case.form.written(("stop", {})), named)
    assert not case.fits(case.form.written(("weather", ROME)), named)


def test_the_parser_of_the_format_reads_what_the_grammar_allows(case: DemandedForm) -> None:
    """Answers are walks through the grammar at random, with a taste for what ends strings, calls and answers."""
    source = case.source()
    grammar = Grammar(source, case.vocabulary)
    (eos,) = grammar.eos_ids
    ends = {case.tokenizer.backend.convert_tokens_to_ids(text) for text in ('"', "}", "</think>", "<|end|>", "C")}
    complete = 0
    for seed in range(40):
        chance, progress, ids = random.Random(seed), GrammarProgress(grammar), list[int]()
        while len(ids) < 300:
            allowed = [int(each) for each in progress.allowed().nonzero()[0]]
            wanted = [each for each in allowed if each in ends] if chance.random() < 0.4 else []
            token = eos if eos in allowed and chance.random() < 0.5 else chance.choice(wanted or allowed)
            if token == eos:
                break
            progress.advance(token)
            ids.append(token)
        else:
            continue
        complete += 1
        text = case.vocabulary.tokenizer.decode_bytes(ids).decode()
        told = case.read(text)
        assert told.calls and not told.text.strip(), text
        for name, arguments in told.calls:
            value = json.loads(arguments)
            if name == "stop":
                assert value == {}
                continue
            assert value["city"] in ("Rome", "Paris") and 1 <= value["days"] <= 7, text
            assert value.get("unit", "C") in ("C", "F") and len(value.get("note", "")) <= 3, text
            assert value.keys() <= WEATHER["properties"].keys()
    assert complete >= 10


def test_reasoning_may_come_first_where_the_model_marks_it(case: DemandedForm) -> None:
    call = case.form.written(("stop", {}))
    if case.form.row == 0:
        thoughts = "<|channel|>analysis<|message|>Hm, {}\n<|end|><|start|>assistant"
    elif case.form.thinks:
        thoughts = "<think>\nHm, <b> {}\n</think>\n\n"
        assert case.fits("<think></think>" + call)
        assert not case.fits("<think>a</think>b</think>" + call)
        assert not case.fits("<think>a" + call)
    else:
        assert not case.fits("<think>\nHm\n</think>\n\n" + call)
        return
    assert case.fits(thoughts + call)
    assert not case.fits(thoughts)
    told = case.read(thoughts + call)
    assert told.reasoning.startswith("Hm") and told.calls == [("stop", "{}")] and not told.text.strip()


def test_reasoning_that_the_prompt_has_begun_has_to_end(
    tokenizers: dict[str, tuple[Tokenizer, GrammarVocabulary]],
) -> None:
    for name in ("hermes", "hermes, plain markers", "xml"):
        form = FORMS[name]
        case = DemandedForm(form, tokenizers[form.fixture], begun=True)
        call = form.written(("stop", {}))
        assert case.fits("Hm\n</think>\n\n" + call)
        assert case.fits("</think>" + call)
        assert not case.fits(call)
        assert not case.fits("<think>Hm</think>" + call)


def test_every_grammar_passes_its_trial(case: DemandedForm) -> None:
    """The trial does not have the model's special tokens."""
    try_grammar(case.source(), 60.0)
    compile_grammar(case.vocabulary.tokenizer, case.source().text)


@pytest.mark.parametrize(
    ("form", "name", "schema", "message"),
    [
        ("hermes", "f", {"type": "string"}, "the parameters of the tool 'f' are no object"),
        ("harmony", "my tool", {}, "the tool 'my tool' cannot be called"),
        ("xml", "f", {"anyOf": [{}]}, "a call of 'f' cannot be demanded .* 'anyOf' beside their properties"),
        ("xml", "f", {"properties": {"a<b": {}}}, "the name 'a<b' cannot be written"),
        ("xml", "f", {"properties": {"a": {"type": "string", "pattern": "x"}}}, "a call of 'f.a' .* a pattern"),
        ("xml", "f", {"properties": {"a": {"type": "string", "enum": ["</parameter>"]}}}, "its values cannot be"),
        ("xml", "f", {"properties": 3}, "their schema is invalid"),
    ],
)
def test_a_tool_that_cannot_be_held_to_its_schema_is_refused(
    form: str, name: str, schema: Mapping[str, Any], message: str
) -> None:
    reading = AnswerReading(AnswerFormats(None, CALL_FORMATS[FORMS[form].row]), tools={name: schema})
    with pytest.raises(InvalidRequest, match=message):
        tool_calls(reading.demanded_calls({name}, several=True), {})


def test_a_schema_that_llguidance_refuses_is_refused_with_its_reason(
    tokenizers: dict[str, tuple[Tokenizer, GrammarVocabulary]],
) -> None:
    reading = AnswerReading(AnswerFormats(None, CALL_FORMATS[4]), tools={"f": {"properties": {"a": {"type": "strin"}}}})
    _, vocabulary = tokenizers["chatml"]
    with pytest.raises(InvalidRequest, match=r"tool call cannot be used: .*Invalid type: strin"):
        Grammar(tool_calls(reading.demanded_calls({"f"}, several=True), vocabulary.special_tokens), vocabulary)


def test_a_model_without_a_known_format_of_calls_cannot_be_held_to_one() -> None:
    with pytest.raises(InvalidRequest, match="the model's chat template shows no format of calls"):
        AnswerReading(tools=TOOLS).demanded_calls({"stop"}, several=True)
