"""The trained model through the three services: perplexity and sentences are stock's, to the last bit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from llguidance.hf import from_tokenizer
from transformers import AutoTokenizer

from demo.corpus import Document
from demo.tokenizer import encode
from tests.integration.stacks.stack import GREEDY, PackedModel, Stack, StockModel, stack
from tests.model.text.small_vocabulary import StockMask, stock_constrained
from zipmoe.client import (
    Constraint,
    FinishReason,
    GenerationClient,
    Message,
    Output,
    Started,
    Stopping,
    Token,
    complete,
)
from zipmoe.errors import InvalidRequest
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.text.grammar_source import json_schema
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


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"book": {"enum": ["Ruth", "Esther", "Genesis"]}, "verse": {"type": "integer", "maximum": 99}},
    "required": ["book", "verse"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
HOURS = {"type": "integer", "multipleOf": 1999983}
"""Compiling it takes hours."""


@pytest.mark.parametrize("seed", [None, 7])
def test_a_constrained_answer_is_that_of_stock_under_the_same_masks(
    seed: int | None, built_in: PackedModel, services: Stack
) -> None:
    backend = AutoTokenizer.from_pretrained(built_in.checkpoint)
    ids = backend("In the beginning God created")["input_ids"]
    masks = StockMask(from_tokenizer(backend), json_schema(json.dumps(SCHEMA)), len(ids))
    settings: dict[str, Any] = {"do_sample": seed is not None, "temperature": 1.2, "top_k": 20, "top_p": 1.0}
    wanted = stock_constrained(StockModel(built_in.checkpoint).model, masks, ids, 60, 0, seed or 0, **settings)
    sampling = GREEDY if seed is None else replace(GREEDY, temperature=1.2, top_k=20, seed=seed)
    with GenerationClient(services.target) as client:
        answer = complete(
            client.generate(
                ids,
                sampling=sampling,
                stopping=Stopping(max_new_tokens=60),
                output=Output(logprobs=True),
                constraint=Constraint(json_schema=SCHEMA),
            )
        )
    assert [(token.token_id, token.logprob) for token in answer.tokens] == wanted
    assert answer.finish_reason is FinishReason.STOP
    assert answer.usage.accepted_tokens > 0, "tokens that are the only ones shared passes"
    told = json.loads(answer.text)
    assert list(told) == ["book", "verse"]
    assert told["book"] in SCHEMA["properties"]["book"]["enum"] and told["verse"] <= 99


def test_a_hostile_schema_is_refused_while_others_are_answered(built_in: PackedModel, services: Stack) -> None:
    """The model thread does not wait: an answer that begins after the schema was sent ends before its refusal."""
    refused: Future[Exception] = Future()

    def ask() -> None:
        with GenerationClient(services.target) as client:
            try:
                complete(client.generate("Hi", constraint=Constraint(json_schema=HOURS)))
            except InvalidRequest as error:
                refused.set_result(error)

    asking = Thread(target=ask)
    asking.start()
    with GenerationClient(services.target) as client:
        answer = complete(client.generate("And", sampling=GREEDY, stopping=Stopping(max_new_tokens=4)))
        assert len(answer.tokens) == 4
        assert not refused.done()
        choice = complete(client.generate("And", sampling=GREEDY, constraint=Constraint(choice=("yes", "no"))))
        assert choice.text in ("yes", "no")
    assert "more than 6 s to compile" in str(refused.result(60))
    asking.join()
