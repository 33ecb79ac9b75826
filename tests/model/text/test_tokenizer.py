from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RawTokenizer
from transformers import PreTrainedTokenizerFast

from zipmoe.errors import InvalidRequest, NotFound, UnsupportedModel
from zipmoe.model.conversation.answer_formats import AnswerFormats
from zipmoe.model.conversation.chat_request import ChatRequest
from zipmoe.model.conversation.conversation_renderer import ConversationRenderer
from zipmoe.model.text.tokenizer import MAX_PENDING_TOKENS, StopStrings, StreamingDetokenizer, Tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "héllo wörld, 你好 世界",
    "a  b   c\n\td",
    "emoji 👩‍👩‍👧 🚀 end",
]
TEXTS = [
    "the quick fox",
    " leading and trailing ",
    "two  spaces\n\nand lines",
    "héllo 你好, 世界! 🚀👩‍👩‍👧 x",
    "a replacement \ufffd inside",
    "",
]
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('unknown role ' + m.role) }}"
    "{% endif %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level() -> RawTokenizer:
    """Byte-level BPE as in Qwen and GPT-OSS: one character may be cut over several tokens."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(CORPUS, trainer)
    return raw


def sentence_piece() -> RawTokenizer:
    """SentencePiece BPE with byte fallback as in Mixtral and Switch: words carry their leading space."""
    words = [
        "▁",
        *(f"<0x{value:02X}>" for value in range(256)),
        *"abcdefghijklmnopqrstuvwxyz,!\n\t",
        "▁t",
        "▁th",
        "▁the",
    ]
    vocabulary = {"<unk>": 0} | {word: index + 1 for index, word in enumerate(words)}
    raw = RawTokenizer(
        models.BPE(
            vocabulary, [("▁", "t"), ("▁t", "h"), ("▁th", "e")], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return raw


BUILDERS: dict[str, Callable[[], RawTokenizer]] = {"byte_level": byte_level, "sentence_piece": sentence_piece}


@pytest.fixture(scope="module", params=BUILDERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    raw = BUILDERS[request.param]()
    raw.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|user|>"), AddedToken("<|assistant|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", chat_template=TEMPLATE)
    path = tmp_path_factory.mktemp(request.param)
    fast.save_pretrained(path)
    (path / "config.json").write_text(json.dumps({"model_type": "qwen2_moe"}))
    return Tokenizer(path)


def stream(tokenizer: Tokenizer, token_ids: list[int]) -> list[str]:
    detokenizer = StreamingDetokenizer(tokenizer)
    return [*(detokenizer.feed(token_id) for token_id in token_ids), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_pieces_add_up_to_the_whole_text(text: str, tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode_text(text)
    assert "".join(stream(tokenizer, token_ids)) == tokenizer.decode(token_ids)


@given(text=st.text(max_size=60))
def test_any_text_streams_to_itself(text: str, tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode_text(text)
    assert "".join(stream(tokenizer, token_ids)) == tokenizer.decode(token_ids)


def test_a_character_is_shown_only_when_it_is_complete(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode_text("x🎉y")
    pieces = stream(tokenizer, token_ids)
    assert len(token_ids) >= 5
    assert [piece for piece in pieces if piece] == ["x", "🎉", "y"]


def test_special_tokens_are_left_out_and_change_nothing_around_them(tokenizer: Tokenizer) -> None:
    end = tokenizer.backend.convert_tokens_to_ids("<|end|>")
    words = tokenizer.encode_text("the the")
    token_ids = [end, *words[:1], end, end, *words[1:], end]
    assert "".join(stream(tokenizer, token_ids)) == tokenizer.decode(token_ids)


def test_a_text_may_go_without_the_tokenizers_special_tokens(tmp_path: Path) -> None:
    raw = byte_level()
    raw.add_special_tokens([AddedToken("<|begin|>", special=True)])
    begin = raw.token_to_id("<|begin|>")
    raw.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    bare = tokenizer.encode_text("the fox", add_special_tokens=False)
    assert tokenizer.encode_text("the fox") == [begin, *bare]
    assert tokenizer.decode(bare) == "the fox"


def test_single_tokens_have_names(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_text("the fox")
    assert "".join(tokenizer.token_text(token_id) for token_id in ids).replace(" ", "") == "thefox"
    special = min(tokenizer.special_ids)
    assert tokenizer.token_text(special) == tokenizer.backend.convert_ids_to_tokens(special)


def test_bytes_that_are_no_text_do_not_stop_the_stream_or_its_memory(tokenizer: Tokenizer) -> None:
    names = tokenizer.backend.get_vocab()
    lead_byte = names.get("<0xF0>", names.get("ð"))
    assert lead_byte is not None
    detokenizer = StreamingDetokenizer(tokenizer)
    pieces = []
    for _ in range(100):
        pieces.append(detokenizer.feed(lead_byte))
        assert len(detokenizer._window) <= 2 * MAX_PENDING_TOKENS
    assert "".join(pieces).count("\ufffd") >= 80
    tail = [detokenizer.feed(token_id) for token_id in tokenizer.encode_text("the the")]
    assert "".join([*tail, detokenizer.finish()]).endswith("the the")


def test_the_cost_of_a_token_does_not_grow_with_the_answer(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    stream(tokenizer, tokenizer.encode_text("the héllo 🚀 " * 100))
    assert max(decoded) <= 2 * MAX_PENDING_TOKENS


def test_shown_special_tokens_appear_by_their_names_and_in_their_place(tokenizer: Tokenizer) -> None:
    end, user = (tokenizer.special_tokens[name] for name in ("<|end|>", "<|user|>"))
    words = tokenizer.encode_text("the 🎉 the")
    shown = StreamingDetokenizer(tokenizer, frozenset({end}))
    pieces = [shown.feed(token_id) for token_id in [end, *words[:-1], user, end, words[-1]]]
    text = "".join([*pieces, shown.finish()])
    assert text.replace("<|end|>", "") == tokenizer.decode(words)
    assert text.startswith("<|end|>the") and text.count("<|end|>") == 2


def test_a_tokenizer_may_have_no_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.backend.save_pretrained(tmp_path)
    for name in ("chat_template.jinja", "chat_template.json"):
        (tmp_path / name).unlink(missing_ok=True)
    assert tokenizer.has_chat_template
    plain = Tokenizer(tmp_path)
    assert not plain.has_chat_template
    renderer = ConversationRenderer(plain)
    assert renderer.formats == AnswerFormats() and renderer.template_names == ()
    with pytest.raises(InvalidRequest, match="no chat template"):
        renderer.render(ChatRequest([{"role": "user", "content": "x"}]))


def test_a_store_without_a_tokenizer_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_moe"}))
    with pytest.raises(NotFound, match="has no tokenizer"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}'])
def test_a_broken_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_moe"}))
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UnsupportedModel, match="cannot be loaded"):
        Tokenizer(tmp_path)


def cut(text: str, lengths: list[int]) -> list[str]:
    pieces, begin = [], 0
    for length in lengths:
        pieces.append(text[begin : begin + length])
        begin += length
    return [*pieces, text[begin:]]


def passed(strings: list[str], pieces: list[str]) -> tuple[str, str | None]:
    stops = StopStrings(strings)
    shown = "".join(stops.feed(piece) for piece in pieces)
    return shown + (stops.finish() if stops.met is None else ""), stops.met


@given(
    text=st.text("abc", max_size=20),
    strings=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    lengths=st.lists(st.integers(0, 4), max_size=12),
)
def test_the_outcome_does_not_depend_on_how_the_text_is_cut(text: str, strings: list[str], lengths: list[int]) -> None:
    whole = passed(strings, [text])
    assert passed(strings, cut(text, lengths)) == whole
    assert passed(strings, list(text)) == whole
    shown, met = whole
    if met is None:
        assert shown == text
        assert not any(string in text for string in strings)
    else:
        assert text.startswith(shown + met)


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    stops = StopStrings(["END", "\n\n"])
    assert [stops.feed(piece) for piece in ("hello E", "N", "O E", "N", "D more")] == ["hello ", "", "ENO ", "", ""]
    assert stops.met == "END"
    assert stops.feed("more") == ""
    assert stops.finish() == ""


def test_no_stop_strings_hold_nothing_back() -> None:
    stops = StopStrings([])
    assert stops.feed("abc") == "abc"
    assert (stops.finish(), stops.met) == ("", None)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="a stop string is empty"):
        StopStrings(["a", ""])


def test_special_tokens_are_part_of_the_text_where_a_client_asks_for_them(tokenizer: Tokenizer) -> None:
    user = tokenizer.backend.convert_tokens_to_ids("<|end|>")
    token_ids = [*tokenizer.encode_text("the"), user, *tokenizer.encode_text("the")]
    detokenizer = StreamingDetokenizer(tokenizer, skip_special_tokens=False)
    text = "".join([*(detokenizer.feed(token_id) for token_id in token_ids), detokenizer.finish()])
    assert text == tokenizer.decode(token_ids, skip_special_tokens=False)
    assert "<|end|>" in text


def test_bytes_of_single_tokens_add_up_to_a_character_that_spans_them(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_text("x🎉é")
    assert b"".join(tokenizer.token_bytes(token_id) for token_id in ids).strip() == "x🎉é".encode()
    assert any("\ufffd" in tokenizer.token_text(token_id) for token_id in ids)
    assert tokenizer.token_bytes(min(tokenizer.special_ids)).startswith(b"<")
