from __future__ import annotations

import json
from pathlib import Path

import pytest

from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.model.conversation.chat_request import ChatRequest
from zipmoe.model.conversation.conversation_renderer import ConversationRenderer
from zipmoe.model.text import vocabulary_files as module
from zipmoe.model.text.token_ids_only import TokenIdsOnly, load_tokenizer
from zipmoe.model.text.tokenizer import StreamingDetokenizer
from zipmoe.model.text.vocabulary_files import missing_package, vocabulary_files


@pytest.fixture
def stand_in(tmp_path: Path) -> TokenIdsOnly:
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, TokenIdsOnly)
    return loaded


def test_text_is_refused_with_the_reason_and_a_way_out(stand_in: TokenIdsOnly) -> None:
    assert isinstance(stand_in.reason, NotFound)
    for refuse in (
        stand_in.require_text,
        lambda: stand_in.encode_text("a"),
        lambda: ConversationRenderer(stand_in).render(ChatRequest([{"role": "user", "content": "a"}])),
        lambda: stand_in.token_text(1),
    ):
        with pytest.raises(InvalidRequest, match="has no tokenizer: none of tokenizer") as raised:
            refuse()
        assert "send the prompt as token ids" in raised.value.diagnostics()
        assert "pack the checkpoint into a new directory" in raised.value.diagnostics()


def test_streamed_text_is_empty_at_any_length(stand_in: TokenIdsOnly) -> None:
    detokenizer = StreamingDetokenizer(stand_in)
    assert "".join(detokenizer.feed(token) for token in range(100)) + detokenizer.finish() == ""


def test_a_tokenizer_with_special_tokens_alone_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_moe"}))
    (tmp_path / "qwen.tiktoken").write_text("IQ== 0\n")
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, TokenIdsOnly)
    assert "transformers finds no vocabulary in qwen.tiktoken" in loaded.reason.message


@pytest.mark.parametrize(
    ("name", "content", "package"),
    [
        ("tokenizer.model", b"\n\x0e\n\x05<unk>", "sentencepiece"),
        ("spiece.model", b"", "sentencepiece"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "tiktoken"),
        ("tiktoken.model", b"", "tiktoken"),
        ("qwen.tiktoken", b"", "tiktoken"),
        ("tekken.json", b"", None),
        ("vocab.json", b"", None),
    ],
)
def test_the_missing_package_is_the_one_that_the_file_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, package: str | None
) -> None:
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert missing_package(vocabulary_files(tmp_path)) == package
    monkeypatch.setattr(module, "find_spec", lambda _: object())
    assert missing_package(vocabulary_files(tmp_path)) is None


def test_a_tokenizer_json_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / name).touch()
    assert missing_package(vocabulary_files(tmp_path)) is None
