"""The trained model through the three services: perplexity and sentences are stock's, to the last bit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from demo.corpus import Document
from demo.tokenizer import encode
from tests.integration.stacks.stack import GREEDY, PackedModel, Stack, StockModel, stack
from zipmoe.client import GenerationClient, Message, Output, Started, Stopping, Token
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.store.pack.writer import pack_store

DEMO = Path(__file__).parents[2] / "demo"
TIGHT = {"cache_slots": "32:32:8"}
"""A third of the 96 experts."""


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    model = PackedModel(DEMO / "model", tmp_path_factory.mktemp("built-in") / "store")
    pack_store(catalogue(model.checkpoint), model.store)
    return model


@pytest.fixture
def services(built_in: PackedModel, short_folder: Path) -> Iterator[Stack]:
    with stack(built_in, short_folder, TIGHT) as running:
        yield running


def test_perplexity_of_held_out_text_equals_stock_to_the_last_bit(built_in: PackedModel, services: Stack) -> None:
    texts = [Document(**json.loads(line)) for line in (DEMO / "held-out.jsonl").read_text().splitlines()]
    chosen = [next(text for text in texts if text.book == book) for book in ("bible", "devil", "jargon")]
    tokenizer, stock = AutoTokenizer.from_pretrained(built_in.checkpoint), StockModel(built_in.checkpoint)
    ours: list[float] = []
    theirs: list[float] = []
    with GenerationClient(services.target) as client:
        for text in chosen:
            ids = encode(tokenizer, text)[:400]
            events = client.generate(
                ids, sampling=GREEDY, stopping=Stopping(max_new_tokens=0), output=Output(prompt_logprobs=True)
            )
            ours += next(event for event in events if isinstance(event, Started)).prompt_logprobs
            theirs += stock.prompt_logprobs(ids)
    assert ours == theirs
    perplexity = math.exp(-math.fsum(ours) / len(ours))
    assert perplexity == math.exp(-math.fsum(theirs) / len(theirs))
    assert perplexity < 150  # it has learnt something: 4,000 for a model that has not
    assert services.metric("router", "zipmoe_expert_misses_total") > 0


def test_a_chat_is_answered_in_english_and_as_stock_would(built_in: PackedModel, services: Stack) -> None:
    tokenizer, stock = AutoTokenizer.from_pretrained(built_in.checkpoint), StockModel(built_in.checkpoint)
    question = "Ruth 1"
    ids = tokenizer(f"<|user|>{question}<|assistant|>")["input_ids"]
    with GenerationClient(services.target) as client:
        assert client.tokenize([Message("user", question)]) == ids
        with_system = tokenizer(f"<|user|>Be brief.\n\n{question}<|assistant|>")["input_ids"]
        assert client.tokenize([Message("system", "Be brief."), Message("user", question)]) == with_system
        stopping = Stopping(max_new_tokens=40, ignore_eos=True)
        events = list(client.generate([Message("user", question)], sampling=GREEDY, stopping=stopping))
    tokens = tuple(event.token_id for event in events if isinstance(event, Token))
    assert tokens == stock.generate(ids, 40).token_ids
    words = set(tokenizer.decode(tokens).replace(",", " ").lower().split())
    assert words & {"and", "the", "of", "to"}
