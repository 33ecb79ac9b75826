"""Writes small working tokenizers for synthetic checkpoints: offline, and reproducible on every machine.

Every id below the vocabulary size stands for a text. Made-up words fill the vocabulary up, so that the output of a
random model is readable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from zipmoe.errors import InvalidRequest

_TEXT = """A mixture of experts sends every token to a few of many small networks. Which networks are asked depends on
the token, and so most of the weights rest while a few of them work. The weights that rest need not be in memory: they
can be read from the disk when a token calls for them, if the disk is fast enough and what is read is small enough. What
the store keeps is the same model, bit for bit; only the place of the bytes and the time of their coming are chosen.
The user asks a question, the assistant gives an answer, and neither of them sees where the weights have been."""
_MERGE_COUNT = 160

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class SpecialTokens:
    """A family's special tokens. Ids from 0 are given in the order bos, eos, pad, chat markers."""

    bos: str
    eos: str
    pad: str
    adds_bos: bool = False
    template_in_own_file: bool = False

    @property
    def names(self) -> list[str]:
        """All special tokens, in the order of ids. Bos, eos and pad may be the same token."""
        return list(dict.fromkeys([self.bos, self.eos, self.pad, "<|im_start|>", "<|im_end|>"]))


# DeepSeek's own names, with fullwidth bars
_DEEPSEEK = SpecialTokens(
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<\uff5c\u2581pad\u2581\uff5c>",
    adds_bos=True,
)
SPECIAL_TOKENS: Mapping[str, SpecialTokens] = {
    "qwen2_moe": SpecialTokens("<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
    "deepseek_v2": _DEEPSEEK,
    "switch_transformers": SpecialTokens("<pad>", "</s>", "<pad>"),
    "qwen3_moe": SpecialTokens("<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
    "olmoe": SpecialTokens("<|endoftext|>", "<|endoftext|>", "<|padding|>"),
    "mixtral": SpecialTokens("<s>", "</s>", "<unk>", adds_bos=True),
    "gpt_oss": SpecialTokens("<|startoftext|>", "<|return|>", "<|endoftext|>", template_in_own_file=True),
    "phimoe": SpecialTokens("<s>", "<|endoftext|>", "<unk>"),
    "glm4_moe": SpecialTokens("[gMASK]", "<|user|>", "<|endoftext|>", template_in_own_file=True),
    "deepseek_v3": _DEEPSEEK,
    "granitemoe": SpecialTokens("<|end_of_text|>", "<|end_of_text|>", "<|end_of_text|>"),
}


def special_ids(family: str) -> dict[str, int]:
    """Returns the ids of a family's special tokens, by name in config.json."""
    tokens = SPECIAL_TOKENS[family]
    if family == "switch_transformers":
        return {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return {
        "bos_token_id": tokens.names.index(tokens.bos),
        "eos_token_id": tokens.names.index(tokens.eos),
        "pad_token_id": tokens.names.index(tokens.pad),
    }


def write_tokenizer(family: str, vocab_size: int, dst: Path) -> None:
    """Writes tokenizer.json and its companion files: a byte-level BPE tokenizer, or for Switch a unigram tokenizer.

    Args:
        family: family of the special tokens.
        vocab_size: vocabulary size of the model, equal to the number of the tokenizer's tokens.
        dst: the checkpoint's directory.

    Raises:
        InvalidRequest: the vocabulary is too small for the special tokens and one token per byte.
    """
    tokens = SPECIAL_TOKENS[family]
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 20, "eos_token": tokens.eos, "pad_token": tokens.pad,
    }  # fmt: skip
    if family == "switch_transformers":
        tokenizer = _unigram(vocab_size)
        settings["unk_token"] = "<unk>"
    else:
        tokenizer = _byte_level(tokens, vocab_size)
        settings["bos_token"] = tokens.bos
        if tokens.template_in_own_file:
            (dst / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        else:
            settings["chat_template"] = CHAT_TEMPLATE
    (dst / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    (dst / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    special = {
        key: value for key, value in settings.items() if key in {"bos_token", "eos_token", "pad_token", "unk_token"}
    }
    (dst / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def _byte_level(tokens: SpecialTokens, vocab_size: int) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _check_size(vocab_size, len(tokens.names) + len(alphabet))
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(
        [_TEXT],
        trainers.BpeTrainer(
            vocab_size=min(vocab_size, len(tokens.names) + len(alphabet) + _MERGE_COUNT),
            special_tokens=tokens.names, initial_alphabet=alphabet, show_progress=False,
        ),
    )  # fmt: skip
    model = json.loads(trained.to_str())["model"]
    vocab = _filled(dict(model["vocab"]), vocab_size, "Ġ")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(merge) for merge in model["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens.names)
    if tokens.adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens.bos} $A", pair=f"{tokens.bos} $A {tokens.bos} $B:1",
            special_tokens=[(tokens.bos, vocab[tokens.bos])],
        )  # fmt: skip
    return tokenizer


def _unigram(vocab_size: int) -> Tokenizer:
    specials = ["<pad>", "</s>", "<unk>"]
    extra = [f"<extra_id_{i}>" for i in reversed(range(100))]  # at the end of the vocabulary, as in T5
    pieces: dict[str, float] = dict.fromkeys(specials, 0.0)
    pieces.update((f"<0x{byte:02X}>", -20.0) for byte in range(256))
    _check_size(vocab_size, len(pieces) + len(extra))
    words = [f"▁{word}" for word in dict.fromkeys(_TEXT.split())]
    characters = ["▁", *sorted(set(_TEXT) - set(" \n"))]
    room = vocab_size - len(extra)
    for piece, score in [*((piece, -8.0) for piece in characters), *((word, -6.0) for word in words)]:
        if len(pieces) < room:
            pieces.setdefault(piece, score)
    for word in _filled({piece: index for index, piece in enumerate(pieces)}, room, "▁"):
        pieces.setdefault(word, -12.0)
    tokenizer = Tokenizer(models.Unigram([*pieces.items(), *((token, 0.0) for token in extra)], 2, True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", "always")])
    tokenizer.add_special_tokens([*specials, *extra])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def _check_size(vocab_size: int, smallest: int) -> None:
    if vocab_size < smallest:
        raise InvalidRequest(f"a vocabulary of {vocab_size} is too small, the tokenizer needs {smallest} at least")


def _filled(vocab: dict[str, int], size: int, word_start: str) -> dict[str, int]:
    """Adds made-up words until the vocabulary has `size` entries."""
    missing = size - len(vocab)
    words = (word for word in _words(word_start) if word not in vocab)
    vocab.update((word, index) for index, word in enumerate(list(islice(words, missing)), start=len(vocab)))
    return vocab


def _words(start: str) -> Iterator[str]:
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    for index in count():
        word, rest = "", index + len(syllables)  # two syllables at least
        while rest:
            rest, digit = divmod(rest, len(syllables))
            word = syllables[digit] + word
        yield start + word
