from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.text.small_vocabulary import EOS, INST, PAUSE, THINK, raw_tokenizer, tokenizer_in
from tests.model.text.test_tokenizer import BUILDERS
from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.model.text import grammar_source
from zipmoe.model.text.call_forms import HERMES
from zipmoe.model.text.grammar import Grammar, GrammarProgress, GrammarVocabulary
from zipmoe.model.text.grammar_source import GrammarSource
from zipmoe.model.text.token_ids_only import TokenIdsOnly
from zipmoe.model.text.tokenizer import Tokenizer
from zipmoe.model.text.tool_grammar import DemandedCalls, tool_calls

SIZE = 160
DEMO = Path(__file__).parents[3] / "demo" / "model"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_in(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> GrammarVocabulary:
    return GrammarVocabulary(tokenizer, SIZE, {int(tokenizer.backend.eos_token_id)})


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.backend(text, add_special_tokens=False)["input_ids"]
    return ids


def follows(tokenizer: Tokenizer, vocabulary: GrammarVocabulary, source: GrammarSource, text: str) -> bool:
    """Whether the tokenizer's own tokens of a text are allowed one by one, and then the end."""
    progress = GrammarProgress(Grammar(source, vocabulary))
    for token_id in ids_of(tokenizer, text):
        if not progress.allowed()[token_id]:
            return False
        progress.advance(token_id)
    return bool(progress.allowed()[tokenizer.backend.eos_token_id])


@pytest.mark.parametrize(
    ("source", "texts", "others"),
    [
        (grammar_source.json_object(), ['{}', '{"a": [1, null]}', '{\n  "b" : {}\n}'], ["{  }", "[]", '{"a"}', "{"]),
        (grammar_source.json_schema('{"type":"integer"}'), ["0", "-12"], ["1.5", '"1"', "01"]),
        (grammar_source.json_schema("true"), ["0", '"x"', "[]"], ["", "x"]),
        (grammar_source.regex(r"a+b?"), ["a", "aab"], ["", "b", "abb", "aba"]),
        (grammar_source.choice(["alpha", "alphabet", 'q"\\/']), ["alpha", "alphabet", 'q"\\/'], ["alph", "al", "beta"]),
    ],
)  # fmt: skip
def test_a_grammar_takes_its_texts_and_ends_only_behind_them(
    source: GrammarSource, texts: list[str], others: list[str], tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    assert [text for text in texts if not follows(tokenizer, vocabulary, source, text)] == []
    assert [text for text in others if follows(tokenizer, vocabulary, source, text)] == []


@given(texts=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5))
def test_any_text_can_be_a_choice(texts: list[str], demo: tuple[Tokenizer, GrammarVocabulary]) -> None:
    _, vocabulary = demo
    grammar = Grammar(grammar_source.choice(texts), vocabulary)
    for text in texts:
        matcher = grammar.matcher()
        assert matcher.consume_tokens(vocabulary.tokenizer.tokenize_str(text))
        assert matcher.is_accepting()


@pytest.fixture(scope="module")
def demo() -> tuple[Tokenizer, GrammarVocabulary]:
    tokenizer = Tokenizer(DEMO)
    return tokenizer, GrammarVocabulary(tokenizer, 4096, {0})


def test_the_built_in_tokenizer_writes_json(demo: tuple[Tokenizer, GrammarVocabulary]) -> None:
    tokenizer, vocabulary = demo
    schema = grammar_source.json_schema('{"type":"object","properties":{"word":{"type":"string"}}}')
    for value in ({"word": "And it came to pass — 你好 🚀"}, {"word": 'a "b" \\ \n'}, {"word": "", "more": [1.5e3]}):
        assert follows(tokenizer, vocabulary, schema, json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize("kind", BUILDERS)
def test_byte_level_and_sentence_piece_tokens_have_their_bytes(kind: str, tmp_path: Path) -> None:
    raw = BUILDERS[kind]()
    raw.add_special_tokens([EOS])
    tokenizer = tokenizer_in(tmp_path, raw)
    vocabulary = GrammarVocabulary(tokenizer, 500, {int(tokenizer.backend.eos_token_id)})
    for text in ("the fox", "héllo 你好\n", "🚀"):
        ids = ids_of(tokenizer, text)
        assert vocabulary.tokenizer.decode_bytes(ids).decode().lstrip() == text
        # SentencePiece puts a blank before the first word, which decoding takes away again.
        blank = vocabulary.tokenizer.decode_bytes(ids)[: -len(text.encode())].decode()
        assert follows(tokenizer, vocabulary, grammar_source.choice([blank + text]), text)


def test_special_tokens_and_tags_are_no_text_and_other_added_tokens_are(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    known = tokenizer.backend.convert_tokens_to_ids
    allowed = GrammarProgress(Grammar(grammar_source.regex("[ -~]+"), vocabulary)).allowed()
    assert not allowed[[known(PAUSE), known(EOS), known(THINK)]].any()
    assert allowed[known(INST)]
    assert not allowed[len(tokenizer.backend) :].any(), "ids that the tokenizer does not know"
    assert vocabulary.special_tokens == {name: known(name) for name in (THINK, EOS, PAUSE)}


def test_all_end_tokens_are_allowed_at_the_end_alone(tokenizer: Tokenizer) -> None:
    known = tokenizer.backend.convert_tokens_to_ids
    ends = {known(EOS), known(PAUSE)}
    progress = GrammarProgress(Grammar(grammar_source.regex("a"), GrammarVocabulary(tokenizer, SIZE, ends)))
    assert progress.next_certain() == known("a")
    progress.advance(known("a"))
    assert set(progress.allowed().nonzero()[0]) == ends
    assert progress.next_certain() is None


def test_tokens_are_certain_as_long_as_each_is_the_only_one(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    progress = GrammarProgress(Grammar(grammar_source.regex("x(yz1z2|w)q"), vocabulary))
    known = tokenizer.backend.convert_tokens_to_ids
    assert progress.certain(15) == (known("x"),)
    progress.advance(known("x"))
    assert progress.certain(15) == ()
    progress.advance(known("y"))
    rest = tuple(map(known, "z1z2q"))
    assert progress.certain(2) == rest[:2]
    assert progress.certain(15) == rest, "the end of the answer is not among them"
    for token_id in rest:
        assert progress.next_certain() == token_id
        assert list(progress.allowed().nonzero()[0]) == [token_id]
        progress.advance(token_id)
    assert progress.next_certain() == known(EOS)


def test_answers_of_one_grammar_do_not_meet(tokenizer: Tokenizer, vocabulary: GrammarVocabulary) -> None:
    grammar = Grammar(grammar_source.regex("a[bc]d"), vocabulary)
    known = tokenizer.backend.convert_tokens_to_ids
    first, second = GrammarProgress(grammar), GrammarProgress(grammar)
    first.advance(known("a"))
    assert set(first.allowed().nonzero()[0]) == {known("b"), known("c")}
    assert second.next_certain() == known("a")


def test_a_token_that_is_not_allowed_spoils_the_grammar(tokenizer: Tokenizer, vocabulary: GrammarVocabulary) -> None:
    grammar = Grammar(grammar_source.regex("a[bc]d"), vocabulary)
    progress = GrammarProgress(grammar)
    with pytest.raises(InvalidRequest, match="the answer's regex, after 1 tokens, fails: "):
        progress.advance(tokenizer.backend.convert_tokens_to_ids("z"))
    assert grammar.failed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grammar_source.regex(""), "the regular expression is empty"),
        (lambda: grammar_source.regex("x" * (1 << 14) + "x"), "has 16385 bytes, but has to have at most 16384"),
        (lambda: grammar_source.choice([]), "nothing to choose from"),
        (lambda: grammar_source.choice(["a", ""]), "a choice is empty"),
        (lambda: grammar_source.choice(["\ud800"]), "half a surrogate pair at character 0"),
        (lambda: grammar_source.json_schema("{"), "the JSON schema cannot be read"),
        (lambda: grammar_source.json_schema(json.dumps({"enum": ["x" * 10_000_000]})), "has 10000014 bytes"),
        (lambda: grammar_source.json_schema('{"items":' * 9000 + "{}" + "}" * 9000), "recursion limit exceeded"),
        (lambda: tool_calls(DemandedCalls([], HERMES), {}), "no tool to call"),
    ],
)
def test_a_bad_source_is_refused_before_it_is_compiled(make: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (grammar_source.json_schema('{"type":"strin"}'), "json_schema cannot be used: Invalid type: strin"),
        (grammar_source.json_schema('{"if":{}}'), 'json_schema cannot be used: Unimplemented keys: \\["if"\\]'),
        (grammar_source.json_schema('{"$ref":"#/nowhere"}'), "Pointer '/nowhere' does not exist"),
        (grammar_source.json_schema('{"$ref":"http://127.0.0.1:9/x"}'), "does not fetch resources"),
        (grammar_source.json_schema('{"$defs":{"a":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}'), "no text matches"),
        (grammar_source.json_schema("false"), "Unsatisfiable schema"),
        (grammar_source.regex("(a"), "regex cannot be used: unclosed group"),
        (grammar_source.regex(r"(a)\1"), "backreferences are not supported"),
        (grammar_source.regex("(?=a)b"), "look-around"),
    ],
)
def test_a_grammar_that_cannot_be_used_says_why(
    source: GrammarSource, message: str, vocabulary: GrammarVocabulary
) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        Grammar(source, vocabulary)
    assert "\n" not in refused.value.message


def test_a_model_without_tokenizer_or_end_takes_no_constraint(tokenizer: Tokenizer) -> None:
    missing = TokenIdsOnly(NotFound("no file", next_step="put one there"))
    with pytest.raises(InvalidRequest, match="served without a tokenizer, for token ids only: no file"):
        GrammarVocabulary(missing, SIZE, {1})
    with pytest.raises(InvalidRequest, match="the model has no end-of-sequence token"):
        GrammarVocabulary(tokenizer, SIZE, ())


def test_the_small_vocabulary_fits_a_tiny_model() -> None:
    assert raw_tokenizer().get_vocab_size(with_added_tokens=True) <= SIZE
