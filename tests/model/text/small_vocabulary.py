"""A tokenizer with fewer tokens than a tiny model has logits, and stock's `generate` under the masks of a grammar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerFast

from zipmoe.model.text.grammar_source import GrammarSource
from zipmoe.model.text.tokenizer import Tokenizer

MERGES = ["tr", "tru", "true", "fa", "fal", "fals", "false", '":', '{"', '"}', "al", "alp", "alph", "alpha", "be", "ta"]
EOS = "<eos>"
PAUSE = "<pause>"
THINK = "<think>"
INST = "[INST]"


def raw_tokenizer() -> RawTokenizer:
    """Printable ASCII, a line feed, some merges of JSON, and added tokens: two special ones and two others."""
    characters = ["Ċ", "Ġ", *map(chr, range(33, 127))]
    raw = RawTokenizer(
        models.BPE(
            {token: index for index, token in enumerate([*characters, *MERGES])},
            [(text[:-1], text[-1]) for text in MERGES],
        )
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens([THINK, INST])
    raw.add_special_tokens([AddedToken(EOS, special=True), AddedToken(PAUSE, special=True)])
    return raw


def tokenizer_in(folder: Path, raw: RawTokenizer | None = None) -> Tokenizer:
    """Saves a tokenizer as a store has it, and loads it."""
    PreTrainedTokenizerFast(tokenizer_object=raw or raw_tokenizer(), eos_token=EOS).save_pretrained(folder)
    return Tokenizer(folder)


class StockMask(LogitsProcessor):
    """A processor for stock's `generate`: reads the whole answer anew for each token."""

    def __init__(self, tokenizer: LLTokenizer, source: GrammarSource, prompt_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self._prompt_tokens = prompt_tokens
        self.allowed: list[list[int]] = []
        """For each token of the answer, the tokens that the mask left."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        matcher = LLMatcher(self._tokenizer, self._source.text, log_level=0)
        assert matcher.consume_tokens(input_ids[0, self._prompt_tokens :].tolist())
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        ids = np.flatnonzero(bits[: scores.shape[-1]])
        self.allowed.append(ids.tolist())
        masked = torch.full_like(scores, -torch.inf)
        masked[:, ids] = scores[:, ids]
        return masked


def stock_constrained(
    model: PreTrainedModel, mask: StockMask, token_ids: list[int], count: int, eos: int, seed: int, **settings: Any
) -> list[tuple[int, float]]:
    """Returns the tokens of stock's `generate` under a mask, with the log-probabilities of the unmodified logits."""
    ids = torch.tensor([token_ids])
    torch.manual_seed(seed)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        eos_token_id=eos,
        pad_token_id=eos,
        logits_processor=LogitsProcessorList([mask]),
        return_dict_in_generate=True,
        output_logits=True,
        **settings,
    )
    logits = output.logits
    tokens = output.sequences[0, -len(logits) :].tolist()
    scores = [torch.log_softmax(each[0].float(), -1) for each in logits]
    return [(token, float(score[token])) for token, score in zip(tokens, scores, strict=True)]
