from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zipmoe.model.synth.configs import FAMILIES
from zipmoe.model.synth.tokenizer_files import special_ids, write_tokenizer

TEXTS = [
    "The weights rest.", "Grüße, 世界! 🙂", " two  spaces", "tabs\tand\nlines\n", "if x[0] != 'a': return {1: 2}",
    "the the the of experts", "e\u0301 combining",
]  # fmt: skip


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def tokenizer(family: str, tmp_path: Path) -> PreTrainedTokenizerBase:
    write_tokenizer(family, 700, tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_special_tokens_have_the_ids_of_the_configuration(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = special_ids(family)
    assert tokenizer.eos_token_id == ids["eos_token_id"]
    assert tokenizer.pad_token_id == ids["pad_token_id"]
    assert tokenizer.bos_token_id == ids.get("bos_token_id")


def test_the_vocabulary_is_the_models(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == 700
    assert sorted(tokenizer.get_vocab().values()) == list(range(700))


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives(family: str, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text).input_ids
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    if family == "switch_transformers":  # T5's kind normalises, and takes the first space and all line ends for one
        assert decoded.replace(" ", "") == text.replace("e\u0301", "é").replace(" ", "")
        assert ids[-1] == tokenizer.eos_token_id
    else:
        assert decoded == text


def test_common_words_are_few_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer(" the weights of the disk").input_ids) < 14


def test_every_token_stands_for_text(tokenizer: PreTrainedTokenizerBase) -> None:
    special = set(tokenizer.all_special_ids)
    for token in range(300, 600):
        assert token in special or tokenizer.decode([token]).strip()


def test_conversations_become_one_prompt(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    if family == "switch_transformers":
        assert tokenizer.chat_template is None
        return
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == ("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>assistant\n")
    marker = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert tokenizer(prompt, add_special_tokens=False).input_ids.count(marker) == 3


def test_beginnings_are_marked_where_the_family_marks_them(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    marked = tokenizer("the").input_ids[0] == tokenizer.bos_token_id
    assert marked == (family in {"deepseek_v2", "deepseek_v3", "mixtral"})
